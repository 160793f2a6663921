//! What detectors share above the ops and below the models: anchors.

pub mod anchors;
