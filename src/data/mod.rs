//! Data sets: reading, decoding, augmentation, batches; and the built-in data set of shapes.

pub mod loader;
//! Data sets: reading them, drawing them, and the built-in one.

pub mod draw;
pub mod shapes;
