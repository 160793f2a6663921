//! Checks of a recipe as a whole, beyond the type of each key, and notes to print before the run.

use std::collections::BTreeMap;
use std::path::Path;

use super::{ExpectConfig, ExpectSplit, NormMode, Recipe, Resize, ScheduleConfig, ScheduleKind, StageConfig};
use crate::models::config::{Detector, ModelConfig};
use crate::{Error, Result};

impl Recipe {
    /// Checks the recipe as a whole. `file` is used only in messages.
    pub fn check(&self, file: &Path) -> Result<()> {
        let error = |key: String, message: String| Err(Error::recipe(file, key, message));
        if !is_file_name(&self.name) {
            return error("name".into(), file_name_rule(&self.name));
        }
        self.check_model(file)?;
        if self.data.train.is_none() {
            let what = match self.stages.first() {
                Some(stage) => format!("stage {:?} has no data", stage.name),
                None => "no data to train on".to_string(),
            };
            let text =
                format!("missing: {what}: give data.train = {{ annotations = \"FILE.json\", images = \"FOLDER\" }}");
            return error("data.train".into(), text);
        }
        if self.data.shapes.is_some() && self.data.built_in.is_none() {
            return error("data.shapes".into(), "has no effect without data.built_in = \"shapes\"".into());
        }
        if self.stages.is_empty() {
            return error("stage".into(), "missing: a recipe needs at least one [[stage]]".into());
        }
        for (index, stage) in self.stages.iter().enumerate() {
            if self.stages[..index].iter().any(|other| other.name == stage.name) {
                return error(format!("stage.{index}.name"), format!("{:?} names two stages", stage.name));
            }
            if !is_file_name(&stage.name) || stage.name.parse::<usize>().is_ok() {
                let text = file_name_rule(&stage.name) + ", and not only digits";
                return error(format!("stage.{index}.name"), text);
            }
            let has_norm = !self.model.backbone.kind.is_swin();
            stage.check(file, index > 0 || self.init.weights.is_some(), has_norm)?;
        }
        match &self.expect {
            Some(expect) => self.check_expect(file, expect),
            None => Ok(()),
        }
    }

    fn check_model(&self, file: &Path) -> Result<()> {
        let error = |key: &str, message: String| Err(Error::recipe(file, key, message));
        let ModelConfig { detector, fpn, rpn, box_head, retina_head, .. } = &self.model;
        let retina = *detector == Detector::RetinaNet;
        let (table, strides) = if retina { ("retina_head", &retina_head.strides) } else { ("rpn", &rpn.strides) };
        let want = fpn.strides();
        if *strides != want {
            let text = format!(
                "model.fpn.start = {} and levels = {} have strides {want:?}, found {strides:?}",
                fpn.start, fpn.levels
            );
            return error(&format!("model.{table}.strides"), text);
        }
        if fpn.start + fpn.levels < 6 {
            let text =
                format!("{} levels from {} on end below P5: use at least {}", fpn.levels, fpn.start, 6 - fpn.start);
            return error("model.fpn.levels", text);
        }
        if *detector == Detector::CascadeRcnn && !box_head.class_agnostic {
            let text = "false: a cascade's boxes are refined by one set of deltas: use true".into();
            return error("model.box_head.class_agnostic", text);
        }
        if !retina && fpn.start != 2 {
            return error("model.fpn.start", format!("{}: RoI features come from P2 to P5: use 2", fpn.start));
        }
        let ious: &[_] = if retina {
            &[("model.retina_head", retina_head.neg_iou, retina_head.pos_iou)]
        } else {
            &[("model.rpn", rpn.neg_iou, rpn.pos_iou), ("model.box_head", box_head.neg_iou, box_head.pos_iou)]
        };
        for (table, negative, positive) in ious {
            if negative > positive {
                let text = format!("{negative} is above pos_iou = {positive}: a box would be negative and positive");
                return error(&format!("{table}.neg_iou"), text);
            }
        }
        Ok(())
    }

    fn check_expect(&self, file: &Path, expect: &ExpectConfig) -> Result<()> {
        let error = |key: &str, message: String| Err(Error::recipe(file, key, message));
        let (key, split) = match expect.split {
            ExpectSplit::Val => ("data.val", &self.data.val),
            ExpectSplit::Test => ("data.test", &self.data.test),
        };
        if split.is_none() {
            return error(key, format!("missing: expect.split = {:?} needs it", key.trim_start_matches("data.")));
        }
        if expect.split == ExpectSplit::Val && self.data.test.is_some() {
            let message =
                "the final weights are evaluated on data.test: set expect.split = \"test\", or remove data.test";
            return error("expect.split", message.into());
        }
        for (name, value) in expect.metrics() {
            if value > 0.0 && value <= 1.0 {
                return error(&format!("expect.{name}"), "is in per cent: write 39.3, not 0.393".into());
            }
            if name.starts_with("segm") && self.model.mask_size().is_none() {
                let text = format!("{} has no masks: remove it", self.model.detector.name());
                return error(&format!("expect.{name}"), text);
            }
        }
        Ok(())
    }

    /// Whether `[expect]` states a result for masks.
    pub fn expects_masks(&self) -> bool {
        self.expect.iter().any(|e| e.metrics().any(|(name, _)| name.starts_with("segm")))
    }

    /// Notes to print before the run: scaled learning rates, and settings without an effect.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.stages.iter().filter_map(StageConfig::lr_sentence).collect::<Vec<_>>();
        for stage in &self.stages {
            let late = stage.schedule.drop_epochs.iter().find(|&&drop| stage.epochs.is_some_and(|e| drop >= e.into()));
            if let Some(drop) = late {
                let epochs = stage.epochs.unwrap_or_default();
                notes.push(format!("{}: the drop at epoch {drop} never comes: the stage has {epochs}", stage.name));
            }
        }
        if self.data.val.is_none() {
            notes.push(
                "data.val is missing: nothing is evaluated while training, and no best checkpoint is kept".into(),
            );
        }
        notes
    }
}

impl StageConfig {
    fn check(&self, file: &Path, has_weights: bool, has_norm: bool) -> Result<()> {
        let name = &self.name;
        let error = |key: &str, message: String| Err(Error::recipe(file, format!("stage.{name}.{key}"), message));
        match (self.epochs, self.steps) {
            (None, None) => return error("epochs", "missing: give epochs or steps".into()),
            (Some(_), Some(_)) => return error("epochs", "give epochs or steps, not both".into()),
            _ => {}
        }
        let (images, micro) = (self.images_per_step, self.micro_batch);
        if !images.is_multiple_of(micro) {
            let fit = (1..=micro.min(images)).rev().find(|n| images.is_multiple_of(*n)).unwrap_or(1);
            let text = format!("{micro} does not divide images_per_step = {images}: {fit} would");
            return error("micro_batch", text);
        }
        let scratch = "needs loaded weights, and this stage starts from scratch: such a network cannot train; \
                       load some (init.weights = \"FILE.safetensors\")";
        if let (NormMode::Frozen | NormMode::Eval, true, false) = (self.batch_norm, has_norm, has_weights) {
            let mode = if self.batch_norm == NormMode::Eval { "eval" } else { "frozen" };
            return error("batch_norm", format!("\"{mode}\" {scratch}, or set stage.{name}.batch_norm = \"train\""));
        }
        if self.frozen_stages >= 0 && !has_weights {
            let text = format!("{} {scratch}, or set stage.{name}.frozen_stages = -1", self.frozen_stages);
            return error("frozen_stages", text);
        }
        let eval = self.eval_resize.as_ref().map(|resize| ("eval_resize", resize));
        for (key, resize) in [("resize", &self.resize)].into_iter().chain(eval) {
            match resize {
                Resize::KeepRatio { long, short, .. } if short > long => {
                    return error(&format!("{key}.short"), format!("{short} is above long = {long}"));
                }
                Resize::FitCrop { jitter: [low, high], .. } if low > high => {
                    return error(&format!("{key}.jitter"), format!("want [low, high], found [{low}, {high}]"));
                }
                _ => {}
            }
        }
        self.check_schedule(&self.schedule).or_else(|(key, text)| error(&format!("schedule.{key}"), text))
    }

    fn check_schedule(&self, schedule: &ScheduleConfig) -> Result<(), (&'static str, String)> {
        let drops = &schedule.drop_epochs;
        match schedule.kind {
            ScheduleKind::Step if drops.is_empty() => {
                Err(("drop_epochs", "missing: kind = \"step\" drops at these epochs".into()))
            }
            ScheduleKind::Constant | ScheduleKind::Cosine if !drops.is_empty() => {
                Err(("drop_epochs", "belongs to kind = \"step\": remove it, or set schedule.kind = \"step\"".into()))
            }
            _ if drops.windows(2).any(|pair| pair[0] >= pair[1]) => {
                Err(("drop_epochs", format!("want rising epochs, found {drops:?}")))
            }
            _ => Ok(()),
        }
    }
}

impl ExpectConfig {
    /// One line for each metric that falls short; empty if all are reached. `found` holds fractions (0 to 1) by metric
    /// name.
    pub fn shortfalls(&self, found: &BTreeMap<String, f64>) -> Vec<String> {
        let short = self.metrics().filter_map(|(name, want)| {
            let got = found.get(name).copied().unwrap_or(f64::NAN) * 100.0;
            // NaN compares false, so it falls short.
            let reached = got >= want - self.window;
            (!reached).then(|| format!("{name}: {got:.1}, expected {want:.1} (window {:.1})", self.window))
        });
        short.collect()
    }
}

/// Whether a run or stage name is usable as a file name.
fn is_file_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(plain)
}

fn file_name_rule(name: &str) -> String {
    format!("{name:?} becomes a file name: want letters, digits, '-', '_' and '.', not starting with '.'")
}
