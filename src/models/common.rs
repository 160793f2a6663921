//! What the heads of all detectors share: losses, detections, how training examples are drawn.

use crate::error::Result;
use crate::ops::cast::cast;
use crate::ops::sample::SampleMode;
use crate::philox::Purpose;
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Tensor};

/// Final boxes, best first.
pub struct Detections {
    /// `[B,D,4]` in pixels.
    pub boxes: Tensor,
    /// `[B,D]`.
    pub scores: Tensor,
    /// i32 `[B,D]`, -1 behind the last.
    pub classes: Tensor,
    /// Logits of each box's mask `[B,D,S,S]`, of detectors that have masks.
    pub masks: Option<Tensor>,
    /// What boxes are measured in.
    pub frame: BoxFrame,
}

/// The pixels that boxes are measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxFrame {
    /// Pixels of the network's input.
    Network,
    /// Pixels of the picture: boxes were divided by the image's scale, before NMS.
    Original,
}

impl BoxFrame {
    /// The scale to divide boxes by, if they are to be in original pixels.
    pub(super) fn scale(self, scale: &Tensor) -> Option<&Tensor> {
        (self == BoxFrame::Original).then_some(scale)
    }
}

/// One term of the training loss, weighted.
pub struct Loss {
    /// Name in the log.
    pub name: &'static str,
    /// `[1]`.
    pub value: Var,
}

/// [`Tape::branch`] of a head on the pyramid `p`.
pub(super) fn branch<R>(
    tape: &mut Tape,
    p: &[Var],
    head: impl FnOnce(&mut Tape, &[Var]) -> Result<(Vec<Loss>, R)>,
) -> Result<(Vec<Loss>, R)> {
    let mut names = Vec::new();
    let (values, rest) = tape.branch(p, |tape, p| {
        let (losses, rest) = head(tape, p)?;
        names.extend(losses.iter().map(|loss| loss.name));
        Ok((losses.into_iter().map(|loss| loss.value).collect(), rest))
    })?;
    Ok((names.into_iter().zip(values).map(|(name, value)| Loss { name, value }).collect(), rest))
}

/// What a head says, for losses and boxes, which are computed in f32 whatever the activations are stored in.
pub(super) fn in_f32(tape: &mut Tape, x: Var) -> Result<Var> {
    cast(tape, &x, DType::F32)
}

/// How training examples are drawn from the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// At random, by the pass's key.
    Random,
    /// Evenly spaced candidates: what the reference fixtures were computed with.
    Strided,
}

impl Sampling {
    pub(super) fn mode(self, purpose: Purpose) -> SampleMode {
        match self {
            Sampling::Random => SampleMode::Random(purpose),
            Sampling::Strided => SampleMode::Strided,
        }
    }
}
