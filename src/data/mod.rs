//! Data sets: reading, decoding, augmentation, batches; and the built-in data set of shapes.

pub mod loader;
pub mod shapes;
