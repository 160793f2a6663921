//! What detectors share above the ops and below the models: anchors, and what dense heads detect.

pub mod anchors;
pub mod dense;
//! What detectors share above the ops and below the models: anchors, and masks in the picture's pixels.

pub mod anchors;
pub mod mask_paste;
