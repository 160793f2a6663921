//! One tensor or a whole model between our names and layouts and those of another program.
//!
//! Main types: [`Translator`] (one tensor), [`Format`]; main function: [`export`].

use std::path::Path;

use super::file::{ForeignData, ForeignTensor};
use super::fit;
use super::format::Format;
use super::layout::{Layout, Placement};
use super::names::{self, Dialect};
use crate::error::{Error, Result};
use crate::models::config::{Detector, ModelConfig};

/// Name and layout of each tensor of a detector in another program. Tensors are translated one at a time.
pub struct Translator {
    dialect: &'static Dialect,
    /// Pixels of the map that the box head flattens.
    map: usize,
    /// Anchors of a cell.
    anchors: usize,
    /// The finest level of the pyramid.
    levels_from: usize,
}

/// A tensor in another program.
pub struct Place {
    /// Its name there.
    pub name: String,
    /// Its elements there.
    pub placement: Placement,
}

impl Translator {
    /// For whole detectors of these settings.
    pub fn new(format: Format, cfg: &ModelConfig) -> Translator {
        Translator::of(format.dialect(), cfg)
    }

    /// For the backbone alone, as torchvision's ImageNet classifier of its kind has it (which lacks the norms of a Swin
    /// Transformer's four outputs).
    pub fn classifier(cfg: &ModelConfig) -> Translator {
        let swin = cfg.backbone.kind.is_swin();
        Translator::of(if swin { &names::TORCHVISION_SWIN } else { &names::TORCHVISION_RESNET }, cfg)
    }

    pub(super) fn of(dialect: &'static Dialect, cfg: &ModelConfig) -> Translator {
        Translator {
            dialect,
            map: cfg.box_head.pool * cfg.box_head.pool,
            anchors: cfg.anchors().per_cell(),
            levels_from: cfg.fpn.start,
        }
    }

    /// Where a parameter of ours (or its gradient) is there. None if there is no such thing.
    pub fn place(&self, name: &str, shape: &[usize]) -> Option<Place> {
        let (theirs, rows) = self.dialect.name(name, self.levels_from, self.anchors)?;
        let layout = match shape.len() {
            4 => Layout::Conv,
            _ if name.contains(".downsample.") && name.contains("backbone.stages.") => {
                Layout::Merge(self.dialect.merge)
            }
            2 if name.ends_with("patch_embed.projection.weight") => Layout::Patch(4),
            2 if name.starts_with("roi_head.bbox_head.") && name.ends_with("shared_fcs.0.weight") => {
                Layout::Flattened(self.map)
            }
            2 if name.ends_with("conv_logits.weight") => Layout::Pointwise,
            _ => Layout::Same,
        };
        Some(Place { name: theirs, placement: Placement::new(layout, rows, shape)? })
    }

    /// A tensor in torch's order to ours of this name and shape.
    ///
    /// Errors: `Shape` if the number of elements is another; `Value` if there is no such tensor there.
    pub fn import(&self, name: &str, shape: &[usize], there: &[f32]) -> Result<Vec<f32>> {
        let place = self.expect(name, shape)?;
        if there.len() != place.placement.elements() {
            let want = format!("{:?}, {} elements", place.placement.shape, place.placement.elements());
            return Err(Error::Shape { what: name.into(), want, got: vec![there.len()] });
        }
        Ok(place.placement.import(there))
    }

    /// A tensor of ours (a weight, or its gradient) in torch's order.
    ///
    /// Errors: as [`Translator::import`].
    pub fn export(&self, name: &str, shape: &[usize], here: &[f32]) -> Result<Vec<f32>> {
        let place = self.expect(name, shape)?;
        if here.len() != shape.iter().product::<usize>() {
            return Err(Error::Shape { what: name.into(), want: format!("{shape:?}"), got: vec![here.len()] });
        }
        Ok(place.placement.export(here))
    }

    pub(super) fn expect(&self, name: &str, shape: &[usize]) -> Result<Place> {
        let none = || Error::value(name, format!("{} has no such tensor of shape {shape:?}", self.dialect.title));
        self.place(name, shape).ok_or_else(none)
    }
}

/// A parameter of a detector of ours: name, shape, values.
pub type Named = (String, Vec<usize>, Vec<f32>);

/// A detector for another program.
pub struct Exported {
    /// Its tensors.
    pub tensors: Vec<ForeignTensor>,
    /// Settings with which it computes differently there.
    pub notes: Vec<String>,
}

/// Translates all parameters of a detector.
///
/// Errors: `Checkpoint` that names the recipe's key by which the detector is none of the other program's; `file` is the checkpoint.
pub fn export(
    file: &Path,
    format: Format,
    cfg: &ModelConfig,
    params: impl IntoIterator<Item = Named>,
) -> Result<Exported> {
    if let Some(message) = fit::obstacle(format, cfg) {
        return Err(Error::checkpoint(file, format!("cannot be a detector of {format}: {message}")));
    }
    let translator = Translator::new(format, cfg);
    let mut tensors = Vec::new();
    for (name, shape, values) in params {
        let there = translator.export(&name, &shape, &values)?;
        let Place { name: theirs, placement } = translator.expect(&name, &shape)?;
        if let Some(start) = theirs.strip_suffix("relative_position_bias_table") {
            tensors.push(position_index(format!("{start}relative_position_index"), cfg.backbone.window));
        }
        tensors.push(ForeignTensor { name: theirs, shape: placement.shape, data: ForeignData::F32(there) });
    }
    Ok(Exported { tensors, notes: fit::differences(format, cfg) })
}

/// Row of the bias table for each pair of tokens of a window: a constant that mmdetection keeps among its weights.
fn position_index(name: String, window: usize) -> ForeignTensor {
    let (w, n) = (window as i64, window * window);
    let pair = |i: i64, j: i64| ((i / w - j / w + w - 1) * (2 * w - 1)) + (i % w - j % w + w - 1);
    let index = (0..n as i64).flat_map(|i| (0..n as i64).map(move |j| pair(i, j))).collect();
    ForeignTensor { name, shape: vec![n, n], data: ForeignData::I64(index) }
}

/// The layers whose rows are classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Predictor {
    /// Rows of a class, next to each other.
    pub(super) each: usize,
    /// Anchors: how often all classes follow each other.
    pub(super) groups: usize,
    /// A last row for the background.
    pub(super) background: bool,
}

impl Predictor {
    /// The one that a parameter belongs to.
    pub(super) fn of(name: &str, cfg: &ModelConfig) -> Option<Predictor> {
        let has = |layer: &str| name.contains(layer);
        let (agnostic, two_stage) = (cfg.box_head.class_agnostic, cfg.detector != Detector::RetinaNet);
        if two_stage && has(".fc_cls.") {
            Some(Predictor { each: 1, groups: 1, background: true })
        } else if two_stage && has(".fc_reg.") && !agnostic {
            Some(Predictor { each: 4, groups: 1, background: false })
        } else if has(".conv_logits.") {
            Some(Predictor { each: 1, groups: 1, background: false })
        } else if has(".retina_cls.") {
            Some(Predictor { each: 1, groups: cfg.anchors().per_cell(), background: false })
        } else {
            None
        }
    }

    /// Rows for so many classes.
    pub(super) fn rows(self, classes: usize) -> usize {
        self.each * self.groups * classes + usize::from(self.background)
    }

    /// The rows of these classes among all `of`.
    pub(super) fn pick(self, values: &[f32], of: usize, keep: &[usize]) -> Vec<f32> {
        let width = values.len() / self.rows(of).max(1);
        let groups = (0..self.groups).flat_map(|g| keep.iter().map(move |k| (g * of + k) * self.each));
        let mut rows: Vec<usize> = groups.flat_map(|r| r..r + self.each).collect();
        rows.extend(self.background.then_some(self.groups * of * self.each));
        rows.into_iter().flat_map(|r| &values[r * width..][..width]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of mmdetection and torchvision for a window of 7.
    #[test]
    fn position_index_is_theirs() {
        let t = position_index("x".into(), 7);
        let ForeignData::I64(index) = &t.data else { panic!("want integers") };
        assert_eq!(t.shape, [49, 49]);
        assert_eq!((&index[..8], &index[49..52]), (&[84, 83, 82, 81, 80, 79, 78, 71][..], &[85, 84, 83][..]));
    }
}
