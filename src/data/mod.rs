//! Module data.

pub mod loader;
