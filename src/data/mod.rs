//! From annotation files and pictures to batches: COCO reading, decoding, augmentation, shape buckets, the loader. Also
//! drawing (`draw`, `draw_set`) and the built-in data set (`shapes`).
//!
//! Not here: tensors and devices. A [`Batch`] holds plain vectors; its pixels are u8 and not normalised.
//!
//! Main types, in the order in which data passes them: [`Dataset`] (an annotation file), [`ImageStore`] (its decoded
//! pictures), [`Pipeline`] (scale, crop, flip, colour), [`Loader`] and [`EvalLoader`] (batches made ahead by threads).
//!
//! Read next: [`coco`] for annotation files, [`pipeline`] for what happens to a picture, [`loader`] for batches.

pub mod augment;
pub mod batch;
pub mod buckets;
pub mod check;
pub mod coco;
pub mod decode;
pub mod draw;
pub mod draw_set;
pub mod loader;
pub mod masks;
mod order;
pub mod pipeline;
mod prefetch;
pub mod resize;
pub mod shapes;
pub mod stats;
pub mod store;
pub mod toggles;

pub use augment::ColourJitter;
pub use batch::Batch;
pub use buckets::{Buckets, Shape};
pub use coco::{Annotation, Category, Dataset, ImageInfo, Masks, ReadOptions, TrainFilter};
pub use coco::{FindingKind, Findings, LeftOut, Segmentation, Severity};
pub use decode::Image;
pub use loader::{EvalLoader, Loader, LoaderOptions, run_capacity};
pub use pipeline::{Geometry, Pipeline};
pub use store::{BadImages, ImageStore};
