//! Module detection.
