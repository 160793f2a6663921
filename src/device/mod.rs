//! Module device.
