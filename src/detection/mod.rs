//! Detection algorithms built from ops and shared by the models: anchors, detections of dense heads, masks pasted into
//! the original picture.
//!
//! Kernels are in [`crate::ops`]; layers and losses are in [`crate::models`]. Main type: [`anchors::Anchors`]. Read
//! `anchors.rs` first, then `dense.rs`.

pub mod anchors;
pub mod dense;
pub mod kept;
pub mod mask_paste;
