//! Types that the heads of all detectors share: losses, detections, the sampling of training examples.

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
    /// i32 `[B,D]`, -1 after the last detection of an image.
    pub classes: Tensor,
    /// Logits of each box's mask `[B,D,S,S]`, if the detector has masks.
    pub masks: Option<Tensor>,
    /// The coordinate frame of the boxes.
    pub frame: BoxFrame,
}

/// The coordinate frame of boxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxFrame {
    /// Pixels of the network's input.
    Network,
    /// Pixels of the original picture: boxes were divided by the image's scale before NMS.
    Original,
}

impl BoxFrame {
    /// The scale to divide boxes by, if the frame is the original picture.
    pub(super) fn scale(self, scale: &Tensor) -> Option<&Tensor> {
        (self == BoxFrame::Original).then_some(scale)
    }
}

/// One term of the training loss, already multiplied by its weight.
pub struct Loss {
    /// Name in the log.
    pub name: &'static str,
    /// `[1]`.
    pub value: Var,
}

/// [`Tape::branch`] for a head on the pyramid `p`; keeps the names of the head's losses.
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

/// Casts a head's output to f32: losses and boxes are computed in f32 whatever type activations are stored in.
pub(super) fn in_f32(tape: &mut Tape, x: Var) -> Result<Var> {
    cast(tape, &x, DType::F32)
}

/// The way in which training examples are sampled from the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// At random, seeded by the key of the pass.
    Random,
    /// Evenly spaced candidates, as in the reference fixtures.
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
