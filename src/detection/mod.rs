//! What detectors share above the ops and below the models: anchors, what dense heads detect, masks in the picture's
//! pixels.

pub mod anchors;
pub mod dense;
pub mod kept;
pub mod mask_paste;
