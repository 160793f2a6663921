//! Detectors, each readable like its paper's figure.

pub mod backbone;
pub mod box_head;
pub mod cascade_rcnn;
pub mod config;
pub mod faster_rcnn;
pub mod fpn;
pub mod inputs;
pub mod mask_head;
pub mod mask_rcnn;
pub mod model;
pub mod resnet;
pub mod retinanet;
pub mod rpn;
pub mod swin;

pub use backbone::{Backbone, BackboneMode};
pub use config::ModelConfig;
pub use inputs::{HostBatch, Inputs, MaskInputs};
pub use model::{Heads, Model, PixelStats};

use crate::ops::sample::SampleMode;
use crate::tape::Var;
use crate::tensor::Tensor;
use crate::tensor::philox::Purpose;

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
    /// Whether boxes are in original pixels.
    pub rescaled: bool,
}

/// One term of the training loss, weighted.
pub struct Loss {
    /// Name in the log.
    pub name: &'static str,
    /// `[1]`.
    pub value: Var,
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
    fn mode(self, purpose: Purpose) -> SampleMode {
        match self {
            Sampling::Random => SampleMode::Random(purpose),
            Sampling::Strided => SampleMode::Strided,
        }
    }
}
