//! Weights of torchvision and mmdetection: their names and layouts, reading and writing them. docs/interchange.md.
//!
//! Main types: [`Translator`] (one tensor), [`load`] (a file into a model), [`export`] (a model for a file).
//!
//! Our names are mmdetection 3's, our layouts are not torch's (docs/conventions.md). Not for: checkpoints, which hold a whole
//! run (`run::checkpoint`).

mod file;
mod fit;
mod format;
mod layout;
mod load;
mod names;
mod translate;

pub use file::{ForeignData, ForeignTensor, is_foreign, write};
pub(crate) use file::{OURS, broken};
pub use format::Format;
pub use layout::{Layout, MergeOrder, Placement, Rows};
pub use load::{Loaded, Origin, load};
pub use translate::{Exported, Place, Translator, export};
