//! One-line notes about what a data set leaves out of its file, for whoever starts a run. The counts are those of
//! [`LeftOut`](super::left_out::LeftOut).

use std::collections::BTreeMap;

use super::dataset::{Annotation, Dataset, TrainFilter};
use super::findings::FindingKind;
use super::left_out::Reasons;

/// How many reasons are named; the others are summed up.
const REASONS_SHOWN: usize = 4;

impl Dataset {
    /// Says what the file lists and training leaves out, and why. None if nothing is left out.
    pub fn training_note(&self, filter: TrainFilter) -> Option<String> {
        let out = &self.left_out;
        let emptied = |i: &&usize| {
            let image = &self.images[**i];
            image.width.min(image.height) >= filter.min_image_size && self.ground_truth(**i).next().is_none()
        };
        let emptied = if filter.empty_gt { out.touched.iter().filter(emptied).count() } else { 0 };
        let what = self.counts(&out.annotations, emptied)?;
        Some(format!("{what} not used ({}): {}", list(reasons(&out.images, &out.annotations)), self.hint()))
    }

    /// Says what the file lists and an evaluation cannot measure, and why. None if everything is measured. As in
    /// pycocotools, a box that no detection can match stays in the ground truth, unless its area is below 0.
    pub fn evaluation_note(&self) -> Option<String> {
        use FindingKind::*;
        let (out, mut gone, mut missed) = (&self.left_out, BTreeMap::new(), BTreeMap::new());
        for (&kind, &n) in &out.annotations {
            let ignored = out.ignored.get(&kind).copied().unwrap_or(0);
            let measured = matches!(kind, SmallBox | BadArea) || kind.is_of_mask();
            let (g, m) = match kind {
                NegativeBox | EmptyBox | OutsideBox => (ignored, n - ignored),
                _ => (if measured { ignored } else { n }, 0),
            };
            gone.extend((g > 0).then_some((kind, g)));
            missed.extend((m > 0).then_some((kind, m)));
        }
        let what = self.counts(&gone, 0);
        let what = what.map(|what| format!("{what} not measured ({})", list(reasons(&out.images, &gone))));
        let why = (!missed.is_empty()).then(|| {
            let (n, why) = (missed.values().sum::<usize>(), list(reasons(&BTreeMap::new(), &missed)));
            let verb = if n == 1 { "counts" } else { "count" };
            format!("{n} of {} annotations {verb} as missed whatever is detected ({why})", out.listed_annotations)
        });
        let all: Vec<String> = what.into_iter().chain(why).collect();
        (!all.is_empty()).then(|| format!("{}: {}", all.join("; "), self.hint()))
    }

    /// Says how many objects have no usable mask, if some have one and others not. The data set must have been read
    /// with masks.
    pub fn mask_note(&self) -> Option<String> {
        let objects = || self.annotations.iter().flatten().filter(|a: &&Annotation| !a.iscrowd);
        let (all, without) = (objects().count(), objects().filter(|a| a.segmentation.is_none()).count());
        (without > 0 && without < all).then(|| {
            format!(
                "{without} of {all} objects have no usable mask, and are left out where masks are measured: `dataset \
                 check` tells why"
            )
        })
    }

    /// `9 of 10 annotations and 1 of 2 images are`: counts `annotations`, and the dropped images plus `more` images.
    /// None if both are 0.
    fn counts(&self, annotations: &Reasons, more: usize) -> Option<String> {
        let out = &self.left_out;
        let (annotations, images) = (annotations.values().sum::<usize>(), out.images.values().sum::<usize>() + more);
        let of = |n: usize, all: usize, what: &str| (n > 0).then(|| format!("{n} of {all} {what}"));
        let parts = [of(annotations, out.listed_annotations, "annotations"), of(images, out.listed_images, "images")];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let verb = if annotations + images == 1 { "is" } else { "are" };
        (!parts.is_empty()).then(|| format!("{} {verb}", parts.join(" and ")))
    }

    fn hint(&self) -> String {
        let images =
            if self.images_dir.as_os_str().is_empty() { "DIR".into() } else { self.images_dir.to_string_lossy() };
        format!("`dataset check {} --images {images}` names them", self.path.display())
    }
}

/// Number of images and of annotations for each reason, with the reason in words.
fn reasons(images: &Reasons, annotations: &Reasons) -> impl Iterator<Item = (usize, &'static str)> {
    let of_annotation = |(kind, n): (&FindingKind, &usize)| match kind {
        FindingKind::BadImageEntry | FindingKind::UnknownSize => (*n, "annotation of such an image"),
        kind => (*n, kind.text().0),
    };
    images.iter().map(|(kind, n)| (*n, kind.text().0)).chain(annotations.iter().map(of_annotation))
}

/// `9 × box of zero width or height, 1 × …`, in the order of `dataset check`.
fn list(reasons: impl Iterator<Item = (usize, &'static str)>) -> String {
    let all: Vec<_> = reasons.collect();
    let (shown, others) = all.split_at(all.len().min(REASONS_SHOWN));
    let mut text = shown.iter().map(|(n, what)| format!("{n} × {what}")).collect::<Vec<_>>().join(", ");
    if !others.is_empty() {
        text += &format!(", {} others", others.iter().map(|(n, _)| n).sum::<usize>());
    }
    text
}
