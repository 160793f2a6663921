//! COCO annotation files: from JSON text to a [`Dataset`], and everything that is wrong with a file.
//!
//! Not here: image files beyond their size (`decode`, `check`), and what becomes of pictures in training (`pipeline`).
//!
//! Main type: [`Dataset`]. Read next: `dataset` (the types), `reader` (how each entry is judged), `raw` (the JSON),
//! [`findings`] (what can be wrong), `segmentation` (masks), `left_out` and `notes` (what a run does not use).

mod dataset;
pub mod findings;
mod left_out;
mod notes;
mod raw;
mod reader;
mod segmentation;

pub use dataset::{Annotation, Category, Dataset, ImageInfo, Masks, ReadOptions, Summary, TrainFilter};
pub use findings::{FindingKind, Findings, Severity};
pub use left_out::LeftOut;
pub use segmentation::Segmentation;
