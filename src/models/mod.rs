//! Detectors: a backbone, a feature pyramid and the heads of one family. Each file follows the figure of its paper.
//!
//! A detector computes losses or detections for one pass. It knows no optimizer ([`crate::engine`]) and no data set
//! ([`crate::data`]). Main types: [`Model`], [`ModelConfig`], [`Inputs`]. Read `model.rs` first, then `faster_rcnn.rs`.

pub mod backbone;
pub mod box_head;
pub mod cascade_rcnn;
pub mod common;
pub mod config;
pub mod faster_rcnn;
pub mod fpn;
pub mod inputs;
pub mod mask_head;
pub mod mask_rcnn;
pub mod mode;
pub mod model;
pub mod resnet;
pub mod retinanet;
pub mod rpn;
pub mod swin;

pub use backbone::Backbone;
pub use common::{BoxFrame, Detections, Loss, Sampling};
pub use config::ModelConfig;
pub use inputs::{HostBatch, Inputs, MaskInputs};
pub use mode::BackboneMode;
pub use model::{Heads, Model, PixelStats};
