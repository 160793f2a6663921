//! The mode of a detector's backbone in a training stage or in evaluation.

use crate::error::Result;
use crate::nn::NormMode;
use crate::tape::{Tape, Var};
use crate::tensor::DType;

/// The mode of the backbone: batch norm, frozen parts, rematerialisation, type of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackboneMode {
    /// Mode of the batch norm layers in the part that is trained.
    pub norm: NormMode,
    /// -1: everything is trained; 0: the stem is frozen; n: the stem and layers 1 to n are frozen. Frozen parts use
    /// running statistics.
    pub frozen_stages: i32,
    /// Whether activations inside the stem and each block are rematerialised in the backward pass instead of being
    /// kept.
    pub recompute: bool,
    /// Type in which activations are stored, in the pyramid and the heads too. Outputs of heads, losses and boxes are
    /// f32.
    pub dtype: DType,
}

impl BackboneMode {
    /// Evaluation: running statistics everywhere, f32, nothing rematerialised.
    pub const EVALUATION: BackboneMode =
        BackboneMode { norm: NormMode::Frozen, frozen_stages: -1, recompute: false, dtype: DType::F32 };

    /// Executes a part of the backbone, and marks it for rematerialisation if this mode asks for it.
    pub(super) fn part(
        self,
        tape: &mut Tape,
        x: Var,
        f: impl Fn(&mut Tape, Var) -> Result<Var> + 'static,
    ) -> Result<Var> {
        if self.recompute { tape.rematerialise(&[&x], move |tape, x| f(tape, x[0].clone())) } else { f(tape, x) }
    }
}
