//! A data set as its COCO annotation file describes it. Reading is tolerant: a bad entry is dropped and counted as a
//! [finding](super::findings). Only a file that leaves no data set (no file, broken JSON, no `images`, one id for two
//! things) is an error.
//!
//! Training uses what mmdetection's `CocoDataset` uses: boxes without area, below one pixel or outside the image are
//! dropped, crowd regions are not ground truth, and images below 32 pixels or without ground truth are left out. When
//! masks are trained, objects without a usable mask are left out too (mmdetection ignores them as well, or stops).

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
    /// Path relative to the image folder.
    pub file_name: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// One entry of `categories`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// `id` of the annotation file.
    pub id: i64,
    /// Name of the class.
    pub name: String,
}

/// One annotation with a known image, a known category and a finite box.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// `id` of the annotation file; -1 if the annotation has none.
    pub id: i64,
    /// Index into [`Dataset::categories`].
    pub class: u32,
    /// `bbox` of the annotation file, unchanged: x, y, width, height.
    pub bbox: [f64; 4],
    /// The box as x0, y0, x1, y1, clipped to the image.
    pub xyxy: [f32; 4],
    /// `area` of the annotation file, or the area of the box if the file has none.
    pub area: f64,
    /// Whether the file has an area.
    pub has_area: bool,
    /// Whether this is a crowd region: many objects in one annotation.
    pub iscrowd: bool,
    /// Whether it is ground truth in training.
    pub usable: bool,
    /// The mask, if [`ReadOptions::masks`] asked for masks and the file has a usable one.
    pub segmentation: Option<Segmentation>,
}

/// How to treat `segmentation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masks {
    /// Masks are not read.
    #[default]
    Skip,
    /// Masks are read, but do not decide what is ground truth.
    Read,
    /// Masks are read. An object without a usable mask is not ground truth; a file without any is an error.
    Train,
}

/// How to read an annotation file.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// How to treat masks.
    pub masks: Masks,
    /// How many examples of each kind of finding are kept.
    pub examples: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { masks: Masks::Skip, examples: EXAMPLES }
    }
}

/// Which images are left out of training.
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

/// A data set: images, classes, annotations, and everything that was wrong with the file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The annotation file.
    pub path: PathBuf,
    /// The folder that file names are relative to.
    pub images_dir: PathBuf,
    /// The images, in the order of the file.
    pub images: Vec<ImageInfo>,
    /// The categories, sorted by id. The index in this list is the class.
    pub categories: Vec<Category>,
    /// For each image its annotations, in the order of the file.
    pub annotations: Vec<Vec<Annotation>>,
    /// Entries that were dropped, repaired or odd.
    pub findings: Findings,
    /// How many entries of the file are not used, and why.
    pub left_out: LeftOut,
}

impl Dataset {
    /// Fails if no annotation has a usable mask.
    pub fn expect_masks(&self) -> Result<()> {
        if self.annotations.iter().flatten().any(|a| !a.iscrowd && a.segmentation.is_some()) {
            return Ok(());
        }
        let message = "no object has a usable `segmentation`: add polygons or RLE (`dataset check` tells what is \
                       wrong with them), or use a detector of boxes";
        Err(Error::data(&self.path, message))
    }

    /// Path of the file of image `index`.
    pub fn image_path(&self, index: usize) -> PathBuf {
        self.images_dir.join(&self.images[index].file_name)
    }

    /// Names of the classes, by class index.
    pub fn class_names(&self) -> Vec<String> {
        self.categories.iter().map(|c| c.name.clone()).collect()
    }

    /// The annotations of image `index` that are ground truth in training.
    pub fn ground_truth(&self, index: usize) -> impl Iterator<Item = &Annotation> {
        self.annotations[index].iter().filter(|a| a.usable)
    }

    /// The largest number of ground-truth boxes of an image, rounded up to a multiple of 8, at least 8. Every image of
    /// a batch is padded to this number.
    pub fn max_gt(&self) -> usize {
        let most = (0..self.images.len()).map(|i| self.ground_truth(i).count()).max().unwrap_or(0);
        most.max(1).next_multiple_of(8)
    }

    /// Indices of the images to train on. If none is left, the error says why.
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

    /// A few lines about what the data set holds and what is left out.
    pub fn summary(&self) -> Summary<'_> {
        Summary(self)
    }
}

/// The text of [`Dataset::summary`].
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
