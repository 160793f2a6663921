//! What detectors share above the ops and below the models: anchors, and what dense heads detect.

pub mod anchors;
pub mod dense;
pub mod mask_paste;
