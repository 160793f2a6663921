//! Reads a weights file of another program into a model of ours.
//!
//! Main function: [`load`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::names::Dialect;
use super::predictor::Predictor;
use super::program::Format;
use super::translate::{Place, Translator};
use super::{file, fit};
use crate::error::{Error, Result};
use crate::format::counted;
use crate::models::config::{Detector, ModelConfig};
use crate::nn::ParamStore;
use crate::tape::Param;

/// The most tensors that an error names.
const SHOWN: usize = 3;

/// The expected origin of a file, and the classes to read from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// The program that the file must be of; `None` accepts each program whose names are in the file.
    pub format: Option<Format>,
    /// The classes to read. `None`: the predictors are read if the file has as many classes as the model, otherwise
    /// they stay as they are.
    pub keep: Option<Keep<'a>>,
}

/// Some of a file's classes.
#[derive(Clone, Copy, Debug)]
pub struct Keep<'a> {
    /// The indices of these classes in the file.
    pub classes: &'a [usize],
    /// The number of classes in the file.
    pub of: usize,
}

/// The result of [`load`].
#[derive(Debug)]
pub struct Loaded {
    /// Only the backbone was read: everything else is unchanged.
    pub backbone_only: bool,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Overwrites a model's parameters with those of a file.
///
/// A file that holds only a backbone (an ImageNet classifier) fills the backbone. Predictors for another number of
/// classes stay as they are. On an error nothing is changed.
///
/// Errors: `Io`; `Checkpoint` if the file is not a whole safetensors file, is of no known program, is of another model
/// (names the first tensors that differ, with both shapes), has a type that is not supported, or holds values that are
/// not finite.
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
    let tensors: BTreeMap<String, TensorView<'_>> = tensors.map(|(n, v)| (dialect.newest(&n), v)).collect();
    let translator = Translator::of(dialect, cfg);
    let reader = Reader { path, cfg, dialect, translator, tensors };
    reader.read(store, origin)
}

/// The error text for a file whose tensor names are of no known program.
fn unknown(first: Option<&str>) -> String {
    let first = first.map_or("it has no tensors at all".into(), |n| format!("its first tensor is {n}"));
    format!("no upres metadata, and not the tensor names of torchvision or mmdetection: {first} (docs/interchange.md)")
}

/// A file, and the model that it is read into.
struct Reader<'a> {
    path: &'a Path,
    cfg: &'a ModelConfig,
    dialect: &'static Dialect,
    translator: Translator,
    /// The tensors of the file, under the newest of their names.
    tensors: BTreeMap<String, TensorView<'a>>,
}

impl Reader<'_> {
    fn read(&self, store: &ParamStore, origin: Origin<'_>) -> Result<Loaded> {
        let failed = |message: String| Err(Error::checkpoint(self.path, message));
        let backbone_only = !store.all().iter().any(|p| !is_backbone(p.name()) && self.holds(p));
        if !backbone_only && let Some(message) = self.other_detector() {
            return failed(message);
        }
        let classes = self.classes();
        if let (Some(keep), Some(has)) = (origin.keep, classes)
            && keep.of != has
        {
            return failed(format!("it has {}, and {} are named", counted(has, "class"), keep.of));
        }
        let classes = origin.keep.map(|keep| keep.of).or(classes);
        let jobs = self.jobs(store, origin.keep, classes, backbone_only)?;
        let values = jobs.iter().map(|job| job.values(self.path)).collect::<Result<Vec<_>>>()?;
        jobs.iter().zip(&values).try_for_each(|(job, values)| job.param.load(values))?;
        let mut notes = Vec::new();
        if backbone_only {
            let anew = "everything behind the backbone starts anew";
            notes.push(format!("a backbone of {}: {anew}", self.dialect.title));
        } else {
            let has = store.all().iter().find_map(|p| self.model_classes(p));
            if let (Some(of_file), Some(has), None) = (classes, has, origin.keep)
                && of_file != has
            {
                notes.push(format!("its {of_file} classes are not the {has} here: their predictors are learnt anew"));
            }
            let format = if self.dialect.is_torchvision() { Format::Torchvision } else { Format::Mmdetection };
            notes.extend(fit::differences(format, self.cfg));
        }
        Ok(Loaded { backbone_only, notes })
    }

    /// Pairs each parameter with its tensor in the file. `classes` is the number of classes in the file.
    ///
    /// Errors: `Checkpoint` that names the first tensors that are missing, superfluous or of another shape.
    fn jobs<'a>(
        &'a self,
        store: &'a ParamStore,
        keep: Option<Keep<'a>>,
        classes: Option<usize>,
        backbone_only: bool,
    ) -> Result<Vec<Job<'a>>> {
        let mut all = Differences::default();
        let mut used = BTreeSet::new();
        let mut jobs = Vec::new();
        for param in store.all() {
            let name = param.name();
            let may_lack = backbone_only && (!is_backbone(name) || is_output_norm(name));
            let predictor = Predictor::of(name, self.cfg);
            // Layers whose rows are classes have as many rows there as the file has classes.
            let (ours, mut want) = (param.shape(), param.shape());
            if let (Some(predictor), Some(classes)) = (predictor, classes) {
                want[0] = predictor.rows(classes);
            }
            let place = self.translator.place(name, &want);
            let view = place.as_ref().and_then(|place| self.tensors.get(&place.name));
            let (place, view) = match (place, view) {
                (Some(place), Some(view)) => (place, view),
                (place, _) => {
                    if !may_lack {
                        all.missing(name, place.as_ref().map_or(name, |place| &place.name));
                    }
                    continue;
                }
            };
            used.insert(place.name.clone());
            if view.shape() != place.placement.shape {
                all.shapes(name, &place.name, view.shape(), &place.placement.shape);
                continue;
            }
            let pick = predictor.zip(keep).map(|(predictor, keep)| Pick { predictor, keep });
            if pick.is_some() || ours == want {
                jobs.push(Job { param, place, view, pick });
            }
        }
        self.tensors.keys().filter(|n| !used.contains(*n)).for_each(|n| all.unexpected(n));
        match all.message() {
            Some(message) => Err(Error::checkpoint(self.path, message)),
            None => Ok(jobs),
        }
    }

    /// The reason why a file of a whole detector cannot be of the recipe's kind; `None` if it can.
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

    /// Whether the file has a tensor for a parameter.
    fn holds(&self, p: &Param) -> bool {
        self.translator.place(p.name(), &p.shape()).is_some_and(|place| self.tensors.contains_key(&place.name))
    }

    /// The number of classes in the file, from the rows of its first classifier.
    fn classes(&self) -> Option<usize> {
        let background = usize::from(self.dialect.is_torchvision());
        let rows = |ours: &str| {
            let (name, _) = self.dialect.name(ours, self.cfg.fpn.start, 1)?;
            self.tensors.get(&name).and_then(|v| v.shape().first().copied())
        };
        let two_stage = ["roi_head.bbox_head.fc_cls.bias", "roi_head.bbox_head.0.fc_cls.bias"];
        let dense = || (rows("bbox_head.retina_cls.bias")? / self.cfg.anchors().per_cell()).checked_sub(background);
        two_stage.into_iter().find_map(rows).map_or_else(dense, |n| n.checked_sub(1))
    }

    /// The number of classes of the model, if the parameter is a predictor.
    fn model_classes(&self, p: &Param) -> Option<usize> {
        Some(Predictor::of(p.name(), self.cfg)?.classes(p.shape()[0]))
    }
}

/// A parameter, and the tensor that its values come from.
struct Job<'a> {
    param: &'a Param,
    place: Place,
    view: &'a TensorView<'a>,
    pick: Option<Pick<'a>>,
}

/// The rows to take from a predictor.
struct Pick<'a> {
    predictor: Predictor,
    keep: Keep<'a>,
}

impl Job<'_> {
    fn values(&self, path: &Path) -> Result<Vec<f32>> {
        let there = file::values(path, &self.place.name, self.view)?;
        let here = self.place.placement.import(&there);
        Ok(match &self.pick {
            Some(Pick { predictor, keep }) => predictor.pick(&here, keep.of, keep.classes),
            None => here,
        })
    }
}

fn is_backbone(name: &str) -> bool {
    name.starts_with("backbone.")
}

/// Whether a parameter belongs to the norms of a Swin Transformer's outputs, which classifiers lack.
fn is_output_norm(name: &str) -> bool {
    name.strip_prefix("backbone.norm").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The differences between a file and a model.
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

    /// Takes the first part that differs as the cause: another backbone changes many tensors behind it.
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
