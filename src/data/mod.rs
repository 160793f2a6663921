//! Module data.
pub mod shapes;
