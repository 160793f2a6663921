//! The feature extractor of a detector: C2 to C5 of an image.

use super::config::BackboneConfig;
use super::resnet::ResNet;
use super::swin::Swin;
use crate::error::Result;
use crate::nn::{Builder, NormMode};
use crate::tape::{Param, Role, Tape, Var};
use crate::tensor::{DType, Tensor};

/// How the backbone runs in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackboneMode {
    /// Batch norm of the trained part.
    pub norm: NormMode,
    /// -1: everything is trained; 0: the stem is frozen; n: the stem and layers 1 to n are. Frozen parts use running
    /// statistics.
    pub frozen_stages: i32,
    /// Whether the stem and each block are computed again in the backward pass instead of being kept.
    pub recompute: bool,
    /// What activations are stored in, those of pyramid and heads too. What heads give, losses and boxes are f32.
    pub dtype: DType,
}

impl BackboneMode {
    /// Running statistics everywhere.
    pub const EVALUATION: BackboneMode =
        BackboneMode { norm: NormMode::Frozen, frozen_stages: -1, recompute: false, dtype: DType::F32 };

    /// Runs a part of the backbone that may be computed again.
    pub(super) fn part(
        self,
        tape: &mut Tape,
        x: Var,
        f: impl Fn(&mut Tape, Var) -> Result<Var> + 'static,
    ) -> Result<Var> {
        if self.recompute { tape.rematerialise(&[&x], move |tape, x| f(tape, x[0].clone())) } else { f(tape, x) }
    }
}

/// One of the families.
pub enum Backbone {
    /// He et al. 2016.
    ResNet(ResNet),
    /// Liu et al. 2021.
    Swin(Swin),
}

impl Backbone {
    /// Initial weights. Of C2 to C5 those from `first` on are used (1: not C2).
    pub fn new(b: &mut Builder<'_>, cfg: &BackboneConfig, first: usize) -> Result<Self> {
        Ok(if cfg.kind.is_swin() {
            Backbone::Swin(Swin::new(b, cfg, first)?)
        } else {
            Backbone::ResNet(ResNet::new(b, cfg)?)
        })
    }

    /// Normalised image `[N,H,W,3]` to C2, C3, C4, C5. `key` draws what a training pass drops; without it nothing is.
    pub fn forward(&self, tape: &mut Tape, image: &Var, mode: BackboneMode, key: Option<&Tensor>) -> Result<[Var; 4]> {
        match self {
            Backbone::ResNet(net) => net.forward(tape, image, mode),
            Backbone::Swin(net) => net.forward(tape, image, mode, key),
        }
    }

    /// Whether a parameter of the detector is trained in this mode, by mmdetection's rules: frozen parts of the backbone are
    /// not; batch norm is not in [`NormMode::Frozen`].
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
