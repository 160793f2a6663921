//! upres's Faster R-CNN R50-FPN against mmdetection's (tests/fixtures/README.md): the shipped recipe, the same weights,
//! the same images. What is compared and how closely: docs/numerics.md, "Parity with mmdetection".

#[path = "../support/mod.rs"]
mod support;

mod detectors;
mod evaluation;
mod harness;
mod recipe_rules;
mod shapes;
mod stored;
mod training;
