//! `dataset stats`: counts of sizes, classes and boxes, and the shapes that training would use.

use std::collections::BTreeMap;
use std::fmt;

use super::buckets::{Buckets, Shape};
use super::coco::{Dataset, TrainFilter};
use super::pipeline::{Geometry, Pipeline};
use crate::format::counted;

/// COCO's limits between small, medium and large objects, in square pixels.
pub const AREA_LIMITS: [f64; 2] = [32.0 * 32.0, 96.0 * 96.0];

/// Counts over a data set. Only boxes that are ground truth in training are counted.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Number of images.
    pub images: usize,
    /// Images that are trained on.
    pub training_images: usize,
    /// Widths and heights of images, each with its number of images, most frequent first.
    pub sizes: Vec<((u32, u32), usize)>,
    /// For each class: name, number of boxes, number of images.
    pub classes: Vec<(String, usize, usize)>,
    /// For each number of boxes in an image: how many images have it.
    pub per_image: BTreeMap<usize, usize>,
    /// Number of boxes by `area`: small, medium, large.
    pub areas: [usize; 3],
    /// Number of boxes by width / height: below 1/4, 1/2, 1, 2, 4, and above.
    pub ratios: [usize; 6],
    /// Square root of a box's width × height in pixels: 5th, 25th, 50th, 75th and 95th percentile.
    pub box_sizes: [f32; 5],
    /// Number of crowd regions.
    pub crowd: usize,
    /// [`Dataset::max_gt`].
    pub max_gt: usize,
    /// Largest longer and shorter side of the proposed buckets.
    pub resize: (u32, u32),
    /// Proposed shapes, each with its number of images.
    pub buckets: Vec<(Shape, usize)>,
    /// Share of the pixels of batches that are padding.
    pub waste: f64,
    /// A text about the entries of the file that are not counted here ([`Dataset::training_note`]).
    pub left_out: Option<String>,
}

impl Stats {
    /// Counts over `dataset`. The buckets are those for resizing to `long` and `short` with the aspect ratio kept.
    pub fn new(dataset: &Dataset, long: u32, short: u32) -> Self {
        let mut sizes: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        let mut classes: Vec<_> = dataset.categories.iter().map(|c| (c.name.clone(), 0, 0)).collect();
        let (mut per_image, mut areas, mut ratios) = (BTreeMap::new(), [0; 3], [0; 6]);
        let mut sides = Vec::new();
        for (i, info) in dataset.images.iter().enumerate() {
            *sizes.entry((info.width, info.height)).or_default() += 1;
            *per_image.entry(dataset.ground_truth(i).count()).or_default() += 1;
            let mut present = vec![false; classes.len()];
            for a in dataset.ground_truth(i) {
                classes[a.class as usize].1 += 1;
                present[a.class as usize] = true;
                areas[AREA_LIMITS.iter().filter(|l| a.area >= **l).count()] += 1;
                let (w, h) = (a.xyxy[2] - a.xyxy[0], a.xyxy[3] - a.xyxy[1]);
                ratios[[0.25, 0.5, 1.0, 2.0, 4.0].iter().filter(|l| w / h >= **l).count()] += 1;
                sides.push((w * h).sqrt());
            }
            classes.iter_mut().zip(present).for_each(|(c, p)| c.2 += usize::from(p));
        }
        sides.sort_by(f32::total_cmp);
        let percentile = |p: usize| sides.get((sides.len().saturating_sub(1) * p + 50) / 100).copied().unwrap_or(0.0);
        let mut sizes: Vec<_> = sizes.into_iter().collect();
        sizes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let training = dataset.training_images(TrainFilter::default()).unwrap_or_default();
        let pipeline = Pipeline::test(Geometry::finetune(long, short));
        let (buckets, resized) = pipeline.buckets_and_sizes(dataset, &training, 1);
        Self {
            images: dataset.images.len(),
            training_images: training.len(),
            sizes,
            classes,
            per_image,
            areas,
            ratios,
            box_sizes: [5, 25, 50, 75, 95].map(percentile),
            crowd: dataset.annotations.iter().flatten().filter(|a| a.iscrowd).count(),
            max_gt: dataset.max_gt(),
            resize: (long, short),
            waste: buckets.waste(&resized),
            buckets: members(&buckets),
            left_out: dataset.training_note(TrainFilter::default()),
        }
    }
}

/// Shapes, each with its number of images.
fn members(buckets: &Buckets) -> Vec<(Shape, usize)> {
    let count = |k: usize| buckets.of_image.iter().filter(|b| usize::from(**b) == k).count();
    buckets.shapes.iter().enumerate().map(|(k, s)| (*s, count(k))).collect()
}

/// A bar `▇▇▇` for `n`; `most` is the longest one.
fn bar(n: usize, most: usize) -> String {
    "▇".repeat((n * 30).div_ceil(most.max(1)).min(30))
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let boxes: usize = self.areas.iter().sum();
        let each = boxes as f64 / self.images.max(1) as f64;
        writeln!(
            f,
            "images        {} ({} to train on), {}, {each:.1} an image, {}",
            self.images,
            self.training_images,
            counted(boxes, "box"),
            counted(self.crowd, "crowd region")
        )?;
        write!(f, "sizes        ")?;
        for ((w, h), n) in self.sizes.iter().take(6) {
            write!(f, " {w}×{h} ({n})")?;
        }
        match self.sizes.len() {
            n if n > 6 => writeln!(f, " and {} others", n - 6)?,
            _ => writeln!(f)?,
        }
        writeln!(f, "\nclass                       boxes   images")?;
        let most = self.classes.iter().map(|c| c.1).max().unwrap_or(0);
        for (name, n, images) in &self.classes {
            writeln!(f, "{}", format!("{name:<24} {n:>8} {images:>8}  {}", bar(*n, most)).trim_end())?;
        }
        writeln!(f, "\nboxes in an image          images")?;
        let ranges =
            [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 127), (128, 255), (256, usize::MAX)];
        let counts = ranges.map(|(lo, hi)| self.per_image.range(lo..=hi).map(|(_, n)| n).sum::<usize>());
        let most = counts.iter().copied().max().unwrap_or(0);
        for ((lo, hi), n) in ranges.into_iter().zip(counts).filter(|(_, n)| *n > 0) {
            let range = match hi {
                usize::MAX => format!("{lo} or more"),
                hi if hi == lo => format!("{lo}"),
                hi => format!("{lo} to {hi}"),
            };
            writeln!(f, "{range:<24} {n:>8}  {}", bar(n, most))?;
        }
        let share = |n: usize| 100.0 * n as f64 / boxes.max(1) as f64;
        let [s, m, l] = self.areas;
        writeln!(
            f,
            "\narea          small {s} ({:.0} %), medium {m} ({:.0} %), large {l} ({:.0} %)",
            share(s),
            share(m),
            share(l)
        )?;
        let [p5, p25, p50, p75, p95] = self.box_sizes;
        writeln!(
            f,
            "box size      √(w·h) in pixels: 5 % {p5:.0}, 25 % {p25:.0}, median {p50:.0}, 75 % {p75:.0}, 95 % {p95:.0}"
        )?;
        write!(f, "width/height ")?;
        for (name, n) in ["< 1/4", "< 1/2", "< 1", "< 2", "< 4", "≥ 4"].iter().zip(self.ratios) {
            write!(f, " {name}: {:.0} %", share(n))?;
        }
        writeln!(f, "\nmax_gt        {} (boxes that each image of a batch is padded to)", self.max_gt)?;
        write!(f, "buckets       ")?;
        if self.buckets.is_empty() {
            write!(f, "none: there is no image to train on")?;
        } else {
            write!(f, "long {}, short {}:", self.resize.0, self.resize.1)?;
            self.buckets.iter().try_for_each(|(shape, n)| write!(f, " {shape} ({n})"))?;
            write!(f, ", {:.1} % padding", self.waste * 100.0)?;
        }
        self.left_out.iter().try_for_each(|line| write!(f, "\nleft out      {line}"))
    }
}
