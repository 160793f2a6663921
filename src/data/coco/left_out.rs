//! Counts of the entries that a file lists and a run does not use, made while the file is read. `notes` turns them into
//! one line of text.
//!
//! Entries that are left out by design are not counted: crowd regions, annotations marked `ignore`, repeated ones, and
//! images that the recipe's `keep_empty` and `min_image_size` leave out. Main type: [`LeftOut`].

use std::collections::{BTreeMap, BTreeSet};

use super::findings::FindingKind;

/// Number of entries for each reason.
pub type Reasons = BTreeMap<FindingKind, usize>;

/// Entries that are not ground truth in training, each counted under one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Entries of `images`, used or not.
    pub listed_images: usize,
    /// Entries of `annotations`, used or not.
    pub listed_annotations: usize,
    /// Entries of `images` that were dropped.
    pub images: Reasons,
    /// Entries of `annotations` that were dropped or are not trained on. Annotations of a dropped image are counted
    /// under the reason of that image.
    pub annotations: Reasons,
    /// The part of `annotations` that was kept but that an evaluation ignores, because the area is below 0.
    pub(super) ignored: Reasons,
    /// Indices of the images that have such an annotation.
    pub(super) touched: BTreeSet<usize>,
}

impl LeftOut {
    /// Counts an entry of `images`.
    pub(super) fn add_image(&mut self, kind: FindingKind) {
        *self.images.entry(kind).or_default() += 1;
    }

    /// Counts an annotation; `index` is its image, if that is known.
    pub(super) fn add_annotation(&mut self, kind: FindingKind, index: Option<usize>) {
        *self.annotations.entry(kind).or_default() += 1;
        self.touched.extend(index);
    }

    /// Records that an annotation counted under `kind` has an area below 0.
    pub(super) fn ignore(&mut self, kind: FindingKind) {
        *self.ignored.entry(kind).or_default() += 1;
    }
}
