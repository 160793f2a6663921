//! Translates single tensors between this program and another one.
//!
//! Main type: [`Translator`].

use super::layout::{Layout, Placement};
use super::names::{self, Dialect};
use super::program::Format;
use crate::error::{Error, Result};
use crate::models::config::ModelConfig;

/// Name and layout of each tensor of a detector in another program. Tensors are translated one at a time.
pub struct Translator {
    dialect: &'static Dialect,
    /// Pixels of the feature map that the box head flattens.
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
    /// The places of its elements there.
    pub placement: Placement,
}

impl Translator {
    /// For whole detectors of these settings.
    pub fn new(format: Format, cfg: &ModelConfig) -> Translator {
        Translator::of(format.dialect(), cfg)
    }

    /// For the backbone alone, with the names of torchvision's ImageNet classifier of its kind. (The classifier lacks
    /// the norms of a Swin Transformer's four outputs.)
    pub fn classifier(cfg: &ModelConfig) -> Translator {
        let swin = cfg.backbone.kind.is_swin();
        Translator::of(if swin { &names::TORCHVISION_SWIN } else { &names::TORCHVISION_RESNET }, cfg)
    }

    /// For the names of a dialect.
    pub(super) fn of(dialect: &'static Dialect, cfg: &ModelConfig) -> Translator {
        Translator {
            dialect,
            map: cfg.box_head.pool * cfg.box_head.pool,
            anchors: cfg.anchors().per_cell(),
            levels_from: cfg.fpn.start,
        }
    }

    /// The place of a parameter (or its gradient) there; `None` if the other program has no such tensor.
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

    /// Converts a tensor of ours (a weight, or its gradient) to torch's order.
    ///
    /// Errors: `Shape` if the number of elements is another; `Value` if the other program has no such tensor.
    pub fn export(&self, name: &str, shape: &[usize], here: &[f32]) -> Result<Vec<f32>> {
        let place = self.expect(name, shape)?;
        if here.len() != shape.iter().product::<usize>() {
            return Err(Error::Shape { what: name.into(), want: format!("{shape:?}"), got: vec![here.len()] });
        }
        Ok(place.placement.export(here))
    }

    /// Like [`Translator::place`], but a missing tensor is an error.
    pub(super) fn expect(&self, name: &str, shape: &[usize]) -> Result<Place> {
        let none = || Error::value(name, format!("{} has no such tensor of shape {shape:?}", self.dialect.title));
        self.place(name, shape).ok_or_else(none)
    }
}
