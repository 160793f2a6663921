//! Module data.

pub mod loader;
pub mod shapes;
