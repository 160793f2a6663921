//! What detectors share above the ops and below the models: anchors, and the way from scores and boxes to detections.

pub mod anchors;
