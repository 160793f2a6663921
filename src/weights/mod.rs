//! Reads and writes the weights files of torchvision and mmdetection: their tensor names and their layouts
//! (docs/interchange.md). Our names are mmdetection 3's, our layouts are not torch's (docs/conventions.md).
//!
//! Not for checkpoints, which hold a whole run ([`crate::run::checkpoint`]). Main type: [`Translator`] (one tensor);
//! main functions: [`load`] (a file into a model), [`export`] (a model for a file). Read `translate.rs` first, then its
//! tables `names.rs` and `layout.rs`.

mod export;
mod file;
mod fit;
mod layout;
mod load;
mod names;
mod predictor;
mod program;
mod translate;

pub use export::{Exported, Named, export};
pub use file::{ForeignData, ForeignTensor, is_foreign, write};
pub(crate) use file::{OURS, broken};
pub use layout::{Layout, MergeOrder, Placement, Rows};
pub use load::{Keep, Loaded, Origin, load};
pub use program::Format;
pub use translate::{Place, Translator};
