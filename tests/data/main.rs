//! The data of a training run: annotation files, image files, masks, the loader, and the built-in data set.

#[path = "../support/mod.rs"]
mod support;

mod coco;
mod images;
mod loader;
mod masks;
mod shapes;
