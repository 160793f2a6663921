//! How the backbone of a detector runs in a stage.

use crate::error::Result;
use crate::nn::NormMode;
use crate::tape::{Tape, Var};
use crate::tensor::DType;

/// How the backbone runs in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackboneMode {
    /// Batch norm of the trained part.
    pub norm: NormMode,
    /// -1: everything is trained; 0: the stem is frozen; n: the stem and layers 1 to n are. Frozen parts use running
    /// statistics.
    pub frozen_stages: i32,
    /// Whether the stem and each block are rematerialised in the backward pass instead of being kept.
    pub recompute: bool,
    /// What activations are stored in, those of pyramid and heads too. What heads give, losses and boxes are f32.
    pub dtype: DType,
}

impl BackboneMode {
    /// Running statistics everywhere.
    pub const EVALUATION: BackboneMode =
        BackboneMode { norm: NormMode::Frozen, frozen_stages: -1, recompute: false, dtype: DType::F32 };

    /// Runs a part of the backbone that may be rematerialised.
    pub(super) fn part(
        self,
        tape: &mut Tape,
        x: Var,
        f: impl Fn(&mut Tape, Var) -> Result<Var> + 'static,
    ) -> Result<Var> {
        if self.recompute { tape.rematerialise(&[&x], move |tape, x| f(tape, x[0].clone())) } else { f(tape, x) }
    }
}
