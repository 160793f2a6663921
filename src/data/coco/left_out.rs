//! What a file lists and a run does not use, counted as the file is read, and told in one line to whoever starts the run.
//!
//! What is left out by design is not counted: crowd regions, annotations marked `ignore`, repeated ones, images that the
//! recipe's `keep_empty` and `min_image_size` leave out. Main type: [`LeftOut`].

use std::collections::{BTreeMap, BTreeSet};

use super::findings::FindingKind;

/// How many entries, by why.
pub type Reasons = BTreeMap<FindingKind, usize>;

/// Entries that are not ground truth in training, each with the first reason why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Entries of `images`, used or not.
    pub listed_images: usize,
    /// Entries of `annotations`, used or not.
    pub listed_annotations: usize,
    /// Entries of `images` that were dropped.
    pub images: Reasons,
    /// Entries of `annotations` that were dropped or are not trained on; those of a dropped image as that image is.
    pub annotations: Reasons,
    /// Those of them that were kept, but that an evaluation ignores because their area is below 0.
    pub(super) ignored: Reasons,
    /// Images, by index, that such an annotation is of.
    pub(super) touched: BTreeSet<usize>,
}

impl LeftOut {
    pub(super) fn add_image(&mut self, kind: FindingKind) {
        *self.images.entry(kind).or_default() += 1;
    }

    /// Adds an annotation of image `index`, if that is known.
    pub(super) fn add_annotation(&mut self, kind: FindingKind, index: Option<usize>) {
        *self.annotations.entry(kind).or_default() += 1;
        self.touched.extend(index);
    }

    /// Says of an annotation of `kind` that its area is below 0.
    pub(super) fn ignore(&mut self, kind: FindingKind) {
        *self.ignored.entry(kind).or_default() += 1;
    }
}
