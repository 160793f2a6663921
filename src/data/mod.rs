//! From annotation files and pictures to batches: COCO reading, decoding, augmentation, shape buckets, the loader.
//!
//! Nothing here knows a tensor or a device: a [`Batch`] holds plain vectors, pixels are u8 and un-normalised.
//! Main types: [`Dataset`], [`Pipeline`], [`ImageStore`], [`Loader`], [`EvalLoader`].
//! [`draw`] draws pictures, [`draw_set`] whole sets, [`shapes`] is the built-in data set.

pub mod augment;
pub mod batch;
pub mod buckets;
pub mod check;
pub mod coco;
pub mod decode;
pub mod draw;
pub mod draw_set;
pub mod findings;
pub mod left_out;
pub mod loader;
pub mod mask_trace;
pub mod masks;
mod notes;
mod order;
pub mod pipeline;
mod prefetch;
mod raw;
mod reader;
pub mod resize;
pub mod segmentation;
pub mod shapes;
pub mod stats;
pub mod store;

pub use augment::ColourJitter;
pub use batch::Batch;
pub use buckets::{Buckets, Shape};
pub use coco::{Annotation, Category, Dataset, ImageInfo, Masks, ReadOptions, TrainFilter};
pub use decode::Image;
pub use findings::{FindingKind, Findings, Severity};
pub use left_out::LeftOut;
pub use loader::{EvalLoader, Loader, LoaderOptions};
pub use masks::run_capacity;
pub use pipeline::{Geometry, Pipeline};
pub use segmentation::Segmentation;
pub use store::{BadImages, ImageStore};
