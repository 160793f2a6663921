//! The feature extractor of a detector: C2 to C5 of an image.

use super::config::BackboneConfig;
use super::mode::BackboneMode;
use super::resnet::ResNet;
use super::swin::Swin;
use crate::error::Result;
use crate::nn::{Builder, NormMode};
use crate::tape::{Param, Role, Tape, Var};
use crate::tensor::Tensor;

/// A backbone of one of the two families.
pub enum Backbone {
    /// He et al. 2016.
    ResNet(ResNet),
    /// Liu et al. 2021.
    Swin(Swin),
}

impl Backbone {
    /// A backbone with initial weights. `first` is the first of C2 to C5 that the detector uses (0: C2, 1: C3).
    pub fn new(b: &mut Builder<'_>, cfg: &BackboneConfig, first: usize) -> Result<Self> {
        Ok(if cfg.kind.is_swin() {
            Backbone::Swin(Swin::new(b, cfg, first)?)
        } else {
            Backbone::ResNet(ResNet::new(b, cfg)?)
        })
    }

    /// Normalised image `[N,H,W,3]` to C2, C3, C4, C5. `key` seeds the drop path of a training pass; without it nothing
    /// is dropped.
    pub fn forward(&self, tape: &mut Tape, image: &Var, mode: BackboneMode, key: Option<&Tensor>) -> Result<[Var; 4]> {
        match self {
            Backbone::ResNet(net) => net.forward(tape, image, mode),
            Backbone::Swin(net) => net.forward(tape, image, mode, key),
        }
    }

    /// Whether a parameter of the detector is trained in this mode, by mmdetection's rules: frozen stages of the
    /// backbone are not, and batch norm is not in [`NormMode::Frozen`].
    pub fn trains(&self, p: &Param, mode: BackboneMode) -> bool {
        match self {
            Backbone::ResNet(_) => {
                let norm = p.role() == Role::Norm && mode.norm == NormMode::Frozen;
                !norm && !ResNet::is_frozen(p.name(), mode.frozen_stages)
            }
            Backbone::Swin(_) => !Swin::is_frozen(p.name(), mode.frozen_stages), // its norms have no statistics
        }
    }
}
