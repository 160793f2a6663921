//! COCO annotation files. Reading is tolerant: a bad entry is a [finding](super::findings), dropped and counted;
//! only what leaves no data set (no file, broken JSON, no `images`, ids that name two things) is an error.
//!
//! What is used in training follows mmdetection's `CocoDataset`: boxes of no area, below a pixel or outside the image
//! are dropped, crowd regions are not ground truth, images below 32 pixels or without ground truth are left out. Where
//! masks are trained, so is an object whose mask cannot be used (there mmdetection ignores it too, or stops).

use std::fmt;
use std::path::PathBuf;

use super::findings::{EXAMPLES, Findings};
use super::left_out::LeftOut;
use super::segmentation::Segmentation;
use crate::error::{Error, Result};
use crate::format::counted;

/// One entry of `images`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// `id` of the annotation file.
    pub id: i64,
    /// Relative to the image folder.
    pub file_name: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// One entry of `categories`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// `id` of the annotation file.
    pub id: i64,
    /// Its name.
    pub name: String,
}

/// One annotation with a known image, a known category and a finite box.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// `id` of the annotation file; -1 where it has none.
    pub id: i64,
    /// Index into [`Dataset::categories`].
    pub class: u32,
    /// `bbox` as it is in the file: x, y, width, height.
    pub bbox: [f64; 4],
    /// x0, y0, x1, y1, clipped to the image.
    pub xyxy: [f32; 4],
    /// `area`, or that of the box where the file has none.
    pub area: f64,
    /// Whether the file has an area.
    pub has_area: bool,
    /// A region of many objects.
    pub iscrowd: bool,
    /// Whether it is ground truth in training.
    pub usable: bool,
    /// Its mask, where [`ReadOptions::masks`] asked for it and the file has a good one.
    pub segmentation: Option<Segmentation>,
}

/// What to do with `segmentation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masks {
    /// Leave it unread.
    #[default]
    Skip,
    /// Read it; ground truth stays as it is without.
    Read,
    /// Read it; an object without a usable mask is not ground truth, and a file without any is an error.
    Train,
}

/// How to read an annotation file.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// What to do with masks.
    pub masks: Masks,
    /// Examples kept of each kind of finding.
    pub examples: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { masks: Masks::Skip, examples: EXAMPLES }
    }
}

/// Which images are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainFilter {
    /// Leave out images without ground truth.
    pub empty_gt: bool,
    /// Leave out images with a side below this.
    pub min_image_size: u32,
}

impl Default for TrainFilter {
    fn default() -> Self {
        Self { empty_gt: true, min_image_size: 32 }
    }
}

/// A data set: images, classes, annotations, and what was wrong with the file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The annotation file.
    pub path: PathBuf,
    /// The folder that file names are relative to.
    pub images_dir: PathBuf,
    /// Images in the order of the file.
    pub images: Vec<ImageInfo>,
    /// Categories by ascending id: the index is the class.
    pub categories: Vec<Category>,
    /// Annotations of each image, in the order of the file.
    pub annotations: Vec<Vec<Annotation>>,
    /// What was dropped, repaired or odd.
    pub findings: Findings,
    /// How much of the file is not used, and why.
    pub left_out: LeftOut,
}

impl Dataset {
    /// An error if no annotation has a mask that can be used.
    pub fn expect_masks(&self) -> Result<()> {
        if self.annotations.iter().flatten().any(|a| !a.iscrowd && a.segmentation.is_some()) {
            return Ok(());
        }
        let message = "no object has a usable `segmentation`: add polygons or RLE (`dataset check` tells what is wrong with \
                       them), or use a detector of boxes";
        Err(Error::data(&self.path, message))
    }

    /// The file of image `index`.
    pub fn image_path(&self, index: usize) -> PathBuf {
        self.images_dir.join(&self.images[index].file_name)
    }

    /// Names of the classes, by class index.
    pub fn class_names(&self) -> Vec<String> {
        self.categories.iter().map(|c| c.name.clone()).collect()
    }

    /// Ground truth of image `index` in training.
    pub fn ground_truth(&self, index: usize) -> impl Iterator<Item = &Annotation> {
        self.annotations[index].iter().filter(|a| a.usable)
    }

    /// The largest number of ground-truth boxes of an image, rounded up to a multiple of 8, at least 8: what every
    /// image of a batch is padded to.
    pub fn max_gt(&self) -> usize {
        let most = (0..self.images.len()).map(|i| self.ground_truth(i).count()).max().unwrap_or(0);
        most.max(1).next_multiple_of(8)
    }

    /// Indices of the images to train on. None left is an error that says why.
    pub fn training_images(&self, filter: TrainFilter) -> Result<Vec<usize>> {
        let large = |i: &usize| self.images[*i].width.min(self.images[*i].height) >= filter.min_image_size;
        let filled = |i: &usize| !filter.empty_gt || self.ground_truth(*i).next().is_some();
        let used: Vec<usize> = (0..self.images.len()).filter(large).filter(filled).collect();
        if used.is_empty() {
            let n = self.images.len();
            let small = (0..n).filter(|i| !large(i)).count();
            let empty = (0..n).filter(|i| !filled(i)).count();
            let message = format!(
                "no image to train on: of {n}, {small} have a side below {} pixels and {empty} have no ground truth: \
                 run `dataset check` on the file",
                filter.min_image_size
            );
            return Err(Error::data(&self.path, message));
        }
        Ok(used)
    }

    /// What is there and what is left out, in a few lines.
    pub fn summary(&self) -> Summary<'_> {
        Summary(self)
    }
}

/// Prints what [`Dataset::summary`] promises.
pub struct Summary<'a>(&'a Dataset);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = self.0;
        let all: usize = d.annotations.iter().map(Vec::len).sum();
        let used = (0..d.images.len()).map(|i| d.ground_truth(i).count()).sum::<usize>();
        writeln!(
            f,
            "{}: {}, {}, {} to train on ({})",
            d.path.display(),
            counted(d.images.len(), "image"),
            counted(d.categories.len(), "class"),
            counted(used, "box"),
            counted(all, "readable annotation")
        )?;
        for (kind, group) in d.findings.groups() {
            let (what, action) = kind.text();
            let example = group.examples.first().map_or(String::new(), |e| format!(" (first: {e})"));
            writeln!(f, "  {}: {} × {what}{example}: {action}", kind.severity(), group.count)?;
        }
        Ok(())
    }
}
