//! A weights file of another program into a model of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::format::Format;
use super::names::Dialect;
use super::translate::{Predictor, Translator};
use super::{file, fit};
use crate::error::{Error, Result};
use crate::format::counted;
use crate::models::config::{Detector, ModelConfig};
use crate::nn::ParamStore;
use crate::tape::Param;

/// Names in an error.
const SHOWN: usize = 3;

/// What a file may be, and what of it is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// Whose it must be; None: whoever's names are in it.
    pub format: Option<Format>,
    /// The classes that are wanted, by their number in the file; None: the file's classes must be the model's, or the
    /// predictors stay as they are.
    pub keep: Option<(&'a [usize], usize)>,
}

/// What has been read.
#[derive(Debug)]
pub struct Loaded {
    /// Only a backbone: all else is as it was.
    pub backbone_only: bool,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Overwrites a model's parameters with those of a file.
///
/// A file that holds a backbone alone (an ImageNet classifier) fills the backbone. Predictors of another number of classes
/// stay as they are. If anything is wrong nothing is changed.
///
/// Errors: `Io`; `Checkpoint` if the file is no whole safetensors file, of no known program, of another model (the first
/// tensors that differ, with both shapes), of a type that is not read, or not finite.
pub fn load(path: &Path, cfg: &ModelConfig, store: &ParamStore, origin: Origin<'_>) -> Result<Loaded> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| file::broken(path, &bytes, e))?;
    let ours = |h: safetensors::tensor::Metadata| h.metadata().as_ref().is_some_and(|m| m.contains_key(file::OURS));
    if SafeTensors::read_metadata(&bytes).is_ok_and(|(_, header)| ours(header)) {
        return Err(Error::checkpoint(path, "a checkpoint already, not weights of another program"));
    }
    let views: Vec<(String, TensorView<'_>)> = file.tensors();
    let dialect = Dialect::of(views.iter().map(|(n, _)| n.as_str()))
        .ok_or_else(|| Error::checkpoint(path, unknown(views.first().map(|(n, _)| n.as_str()))))?;
    if let Some(want) = origin.format
        && (want == Format::Torchvision) != dialect.is_torchvision()
    {
        let message = format!("its tensors are named as those of {}, not of {want}", dialect.title);
        return Err(Error::checkpoint(path, message));
    }
    let tensors = views.into_iter().filter(|(n, _)| !dialect.ignores(n));
    let tensors: BTreeMap<String, (String, TensorView<'_>)> =
        tensors.map(|(n, v)| (dialect.newest(&n), (n, v))).collect();
    let translator = Translator::of(dialect, cfg);
    let reader = Reader { path, cfg, dialect, translator, tensors };
    reader.read(store, origin)
}

/// What to say of tensors that nobody is known to name so.
fn unknown(first: Option<&str>) -> String {
    let first = first.map_or("it has no tensors at all".into(), |n| format!("its first tensor is {n}"));
    format!("no upres metadata, and not the tensor names of torchvision or mmdetection: {first} (docs/interchange.md)")
}

struct Reader<'a> {
    path: &'a Path,
    cfg: &'a ModelConfig,
    dialect: &'static Dialect,
    translator: Translator,
    /// By their newest names, with those in the file.
    tensors: BTreeMap<String, (String, TensorView<'a>)>,
}

impl Reader<'_> {
    fn read(&self, store: &ParamStore, origin: Origin<'_>) -> Result<Loaded> {
        let mut notes = Vec::new();
        let backbone_only = !store.all().iter().any(|p| !is_backbone(p.name()) && self.holds(p));
        if backbone_only {
            let anew = "everything behind the backbone starts anew";
            notes.push(format!("a backbone of {}: {anew}", self.dialect.title));
        } else if let Some(message) = self.other_detector() {
            return Err(Error::checkpoint(self.path, message));
        }
        if let (Some((_, named)), Some(has)) = (origin.keep, self.classes())
            && named != has
        {
            return Err(Error::checkpoint(
                self.path,
                format!("it has {}, and {named} are named", counted(has, "class")),
            ));
        }
        let mut all = Differences::default();
        let mut used = BTreeSet::new();
        let mut jobs: Vec<(&Param, Job<'_>)> = Vec::new();
        let of_file = origin.keep.map(|(_, of)| of).or_else(|| self.classes());
        for p in store.all() {
            let skipped = backbone_only && (!is_backbone(p.name()) || is_output_norm(p.name()));
            let predictor = Predictor::of(p.name(), self.cfg);
            // As many rows as the file has classes, if it is a layer whose rows are classes.
            let (ours, mut want) = (p.shape(), p.shape());
            if let (Some(predictor), Some(classes)) = (predictor, of_file) {
                want[0] = predictor.rows(classes);
            }
            let Some(place) = self.translator.place(p.name(), &want) else {
                if !skipped {
                    all.missing(p.name(), p.name());
                }
                continue;
            };
            let Some((_, view)) = self.tensors.get(&place.name) else {
                if !skipped {
                    all.missing(p.name(), &place.name);
                }
                continue;
            };
            used.insert(place.name.clone());
            if view.shape() != place.placement.shape {
                all.shapes(p.name(), &place.name, view.shape(), &place.placement.shape);
            } else if let (Some(predictor), Some((keep, of))) = (predictor, origin.keep) {
                jobs.push((p, Job { place, view, pick: Some((predictor, keep, of)) }));
            } else if ours == want {
                jobs.push((p, Job { place, view, pick: None }));
            }
        }
        self.tensors.keys().filter(|n| !used.contains(*n)).for_each(|n| all.unexpected(n));
        if let Some(message) = all.message() {
            return Err(Error::checkpoint(self.path, message));
        }
        let has = store.all().iter().find_map(|p| self.model_classes(p));
        if let (Some(of_file), Some(has), None, false) = (of_file, has, origin.keep, backbone_only)
            && of_file != has
        {
            notes.push(format!("its {of_file} classes are not the {has} here: their predictors are learnt anew"));
        }
        let mut values = Vec::with_capacity(jobs.len());
        for (p, job) in jobs {
            let there = file::values(self.path, &job.place.name, job.view)?;
            let here = job.place.placement.import(&there);
            values.push((
                p,
                match job.pick {
                    Some((predictor, keep, of)) => predictor.pick(&here, of, keep),
                    None => here,
                },
            ));
        }
        values.iter().try_for_each(|(p, v)| p.load(v))?;
        if !backbone_only {
            let format = if self.dialect.is_torchvision() { Format::Torchvision } else { Format::Mmdetection };
            notes.extend(fit::differences(format, self.cfg));
        }
        Ok(Loaded { backbone_only, notes })
    }

    /// Why a file of a whole detector cannot be one of the recipe's family; none if it may be.
    fn other_detector(&self) -> Option<String> {
        let has = |part: &str| self.tensors.keys().any(|n| n.contains(part));
        let theirs = if has("retina_cls.") || has("head.classification_head.") {
            Detector::RetinaNet
        } else if has("mask_head.") {
            Detector::MaskRcnn
        } else if has("roi_head.bbox_head.0.") {
            Detector::CascadeRcnn
        } else {
            Detector::FasterRcnn
        };
        let ours = self.cfg.detector;
        if theirs != ours {
            return Some(format!("weights of a {}, and model.detector is {}", theirs.name(), ours.name()));
        }
        let obstacle = fit::obstacle(Format::Torchvision, self.cfg).filter(|_| self.dialect.is_torchvision());
        obstacle.map(|message| format!("a detector of torchvision, which the recipe's is not: {message}"))
    }

    fn holds(&self, p: &Param) -> bool {
        self.translator.place(p.name(), &p.shape()).is_some_and(|place| self.tensors.contains_key(&place.name))
    }

    /// Classes of the file, from the rows of its first classifier.
    fn classes(&self) -> Option<usize> {
        let background = usize::from(self.dialect.is_torchvision());
        let rows = |ours: &str| {
            let (name, _) = self.dialect.name(ours, self.cfg.fpn.start, 1)?;
            self.tensors.get(&name).and_then(|(_, v)| v.shape().first().copied())
        };
        let two_stage = ["roi_head.bbox_head.fc_cls.bias", "roi_head.bbox_head.0.fc_cls.bias"];
        let dense = || (rows("bbox_head.retina_cls.bias")? / self.cfg.anchors().per_cell()).checked_sub(background);
        two_stage.into_iter().find_map(rows).map_or_else(dense, |n| n.checked_sub(1))
    }

    /// Classes of the model, from one of its predictors.
    fn model_classes(&self, p: &Param) -> Option<usize> {
        let predictor = Predictor::of(p.name(), self.cfg)?;
        Some((p.shape()[0] - usize::from(predictor.background)) / (predictor.each * predictor.groups))
    }
}

/// A parameter's values to be read.
struct Job<'a> {
    place: super::translate::Place,
    view: &'a TensorView<'a>,
    pick: Option<(Predictor, &'a [usize], usize)>,
}

fn is_backbone(name: &str) -> bool {
    name.starts_with("backbone.")
}

/// The norms of a Swin Transformer's outputs, which classifiers do not have.
fn is_output_norm(name: &str) -> bool {
    name.strip_prefix("backbone.norm").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// What differs between file and model.
#[derive(Default)]
struct Differences {
    found: Vec<String>,
    cause: Option<&'static str>,
}

impl Differences {
    fn missing(&mut self, ours: &str, theirs: &str) {
        self.blame(ours);
        self.found.push(format!("{theirs} is missing"));
    }

    fn shapes(&mut self, ours: &str, theirs: &str, have: &[usize], want: &[usize]) {
        self.blame(ours);
        self.found.push(format!("{theirs} is {have:?}, the model wants {want:?}"));
    }

    fn unexpected(&mut self, theirs: &str) {
        self.blame(theirs);
        self.found.push(format!("{theirs} is not in the model"));
    }

    /// The first part that differs is the cause: a backbone that is another changes much behind it.
    fn blame(&mut self, name: &str) {
        const PARTS: [(&str, &str); 9] = [
            ("backbone.fpn.", "another pyramid (model.fpn)"),
            ("backbone.", "another backbone (model.backbone: kind or width)"),
            ("neck.", "another pyramid (model.fpn)"),
            ("rpn", "another region proposal network (model.rpn: channels or anchors)"),
            ("roi_head.mask", "another detector (model.detector or model.mask_head)"),
            ("roi_heads.mask", "another detector (model.detector or model.mask_head)"),
            ("roi_head", "another box head or detector (model.box_head, model.detector)"),
            ("bbox_head", "another head or detector (model.retina_head, model.detector)"),
            ("head.", "another head or detector (model.retina_head, model.detector)"),
        ];
        let part = PARTS.iter().find(|(start, _)| name.starts_with(start));
        self.cause.get_or_insert(part.map_or("another backbone (model.backbone: kind or width)", |(_, cause)| cause));
    }

    fn message(&self) -> Option<String> {
        let cause = self.cause?;
        let more = self.found.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!("of {cause}: {}{more}", self.found[..self.found.len().min(SHOWN)].join("; ")))
    }
}
