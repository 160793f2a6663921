//! What a detector knows of boxes beyond single ops: anchors.

pub mod anchors;
