//! Mask targets on the CPU.
//!
//! A bin's samples form a grid and bilinear weights are products, so the mean over a bin is a weighted sum over rows
//! and columns of pixels, and a span of set pixels adds a difference of two prefix sums of the columns' weights. That
//! sum, in f64, decides all bins but those so close to 0.5 that mmcv's sum of f32 might fall on the other side; these
//! are summed in mmcv's order.

use rayon::prelude::*;

/// The masks of a batch, as runs.
pub(super) struct Masks<'a> {
    /// `[B,S]`
    pub runs: &'a [i32],
    pub s: usize,
    /// `[B,G+1]`
    pub offsets: &'a [i32],
    /// G + 1
    pub ends: usize,
    pub width_px: usize,
}

impl<'a> Masks<'a> {
    /// The toggles of object `g` of image `b`; none if there is no such object. Offsets beyond the runs are cut.
    fn object(&self, b: usize, g: i32) -> Option<&'a [i32]> {
        let g = usize::try_from(g).ok().filter(|g| g + 1 < self.ends)?;
        let offset = |i: usize| usize::try_from(self.offsets[b * self.ends + i]).unwrap_or(0).min(self.s);
        let (start, end) = (offset(g), offset(g + 1));
        Some(&self.runs[b * self.s..][start.min(end)..end])
    }
}

/// `target [B,P,size,size]` from `rois [B,P,4]`, `gt [B,P]` and `sizes [B,4]`.
pub(super) fn mask_targets(
    target: &mut [i32],
    rois: &[f32],
    gt: &[i32],
    masks: &Masks<'_>,
    sizes: &[f32],
    p: usize,
    size: usize,
) {
    if target.is_empty() {
        return;
    }
    target.par_chunks_mut(size * size).enumerate().for_each_init(Scratch::default, |scratch, (r, target)| {
        let Some(toggles) = masks.object(r / p, gt[r]) else { return target.fill(-1) };
        let (roi, limits) = (&rois[4 * r..4 * r + 4], &sizes[r / p * 4 + 2..r / p * 4 + 4]);
        let crop = Crop {
            rows: Axis::new(roi[1], roi[3], limits[0], size),
            cols: Axis::new(roi[0], roi[2], limits[1], size),
            toggles,
            width_px: masks.width_px,
        };
        crop.target(target, size, scratch);
    });
}

/// One axis of a box, in pixels: bins of `bin`, each with `grid` samples.
struct Axis {
    start: f32,
    bin: f32,
    grid: usize,
    pixels: usize,
}

impl Axis {
    fn new(lo: f32, hi: f32, limit: f32, bins: usize) -> Axis {
        // NaN stays and makes an empty grid.
        let clip = |v: f32| {
            if v < 0.0 {
                0.0
            } else if v > limit {
                limit
            } else {
                v
            }
        };
        let start = clip(lo) - 0.5;
        let bin = ((clip(hi) - 0.5) - start) / bins as f32;
        let pixels = limit as usize;
        Axis { start, bin, grid: if pixels > 0 { bin.ceil() as usize } else { 0 }, pixels }
    }

    /// The two pixels of sample `i` of bin `b`, and the share of the second. A clipped box has all samples inside.
    #[inline]
    fn sample(&self, b: usize, i: usize) -> (usize, usize, f32) {
        let v = self.start + b as f32 * self.bin + (i as f32 + 0.5) * self.bin / self.grid as f32;
        let v = if v <= 0.0 { 0.0 } else { v };
        let low = v as usize;
        if low + 1 >= self.pixels { (self.pixels - 1, self.pixels - 1, 0.0) } else { (low, low + 1, v - low as f32) }
    }
}

/// The pixels of each bin of one axis: bin b has `first[b]..end[b]`, with `values[at[b]..at[b + 1]]`.
#[derive(Default)]
struct Table {
    first: Vec<usize>,
    end: Vec<usize>,
    at: Vec<usize>,
    values: Vec<f64>,
    /// Sums of the weights.
    total: Vec<f64>,
}

impl Table {
    /// Weights of the pixels.
    fn weights(&mut self, axis: &Axis, bins: usize) {
        for list in [&mut self.first, &mut self.end, &mut self.at] {
            list.clear();
        }
        self.values.clear();
        for b in 0..bins {
            let (first, at) = (axis.sample(b, 0).0, self.values.len());
            self.first.push(first);
            self.at.push(at);
            for i in 0..axis.grid {
                let (low, high, share) = axis.sample(b, i);
                self.values.resize(self.values.len().max(at + high - first + 1), 0.0);
                self.values[at + low - first] += f64::from(1.0 - share);
                self.values[at + high - first] += f64::from(share);
            }
            self.end.push(first + self.values.len() - at);
        }
        self.at.push(self.values.len());
    }

    /// Sums of the weights before each pixel, and of all: one number more than pixels.
    fn prefix_sums(&mut self, axis: &Axis, bins: usize) {
        self.weights(axis, bins);
        let weights = std::mem::take(&mut self.values);
        self.total.clear();
        for b in 0..bins {
            let part = &weights[self.at[b]..self.at[b + 1]];
            self.at[b] = self.values.len();
            self.values.push(0.0);
            let mut sum = 0.0;
            self.values.extend(part.iter().map(|w| {
                sum += w;
                sum
            }));
            self.total.push(sum);
        }
        self.at[bins] = self.values.len();
    }

    fn bin(&self, b: usize) -> (usize, &[f64]) {
        (self.first[b], &self.values[self.at[b]..self.at[b + 1]])
    }

    /// Weight of the pixels `from..to` in bin b, from the prefix sums. The bin must overlap these pixels.
    fn between(&self, b: usize, from: usize, to: usize) -> f64 {
        let (first, prefix) = self.bin(b);
        prefix[to.min(self.end[b]) - first] - prefix[from.saturating_sub(first)]
    }
}

/// Tables of the current box.
#[derive(Default)]
struct Scratch {
    rows: Table,
    cols: Table,
    /// The sums of one even and one odd row of pixels, with the row's index: neighbouring bins share two rows at most.
    sums: [(Option<usize>, Vec<f64>); 2],
    bins: Vec<f64>,
}

/// A box and the object whose mask it crops.
struct Crop<'a> {
    rows: Axis,
    cols: Axis,
    toggles: &'a [i32],
    width_px: usize,
}

impl Crop<'_> {
    fn target(&self, target: &mut [i32], size: usize, s: &mut Scratch) {
        let samples = self.rows.grid * self.cols.grid;
        if samples == 0 {
            return target.fill(0);
        }
        s.rows.weights(&self.rows, size);
        s.cols.prefix_sums(&self.cols, size);
        s.sums.iter_mut().for_each(|(row, _)| *row = None);
        // A sum of n terms in f32 is wrong by at most n - 1 roundings, each term by 4, the division by 1.
        let margin = (samples + 8) as f64 * 0.5 * f64::from(f32::EPSILON);
        for (i, target) in target.chunks_exact_mut(size).enumerate() {
            s.bins.clear();
            s.bins.resize(size, 0.0);
            let (first, weights) = s.rows.bin(i);
            for (row, weight) in (first..).zip(weights) {
                let (known, sums) = &mut s.sums[row % 2];
                if known.replace(row) != Some(row) {
                    self.sum_row(sums, row, size, &s.cols);
                }
                s.bins.iter_mut().zip(&*sums).for_each(|(bin, sum)| *bin += weight * sum);
            }
            for (j, (target, sum)) in target.iter_mut().zip(&s.bins).enumerate() {
                let above = sum / samples as f64 - 0.5;
                *target = if above.abs() > margin { above > 0.0 } else { self.mean(i, j) >= 0.5 }.into();
            }
        }
    }

    /// The weights of the set pixels of a row, for each bin.
    fn sum_row(&self, sums: &mut Vec<f64>, row: usize, size: usize, cols: &Table) {
        sums.clear();
        sums.resize(size, 0.0);
        let start = (row * self.width_px) as i64;
        let before = self.toggles.partition_point(|&t| i64::from(t) <= start);
        // An odd one has set the row's first pixel.
        for span in self.toggles[before - before % 2..].chunks(2) {
            let from = i64::from(span[0]) - start;
            if from >= self.cols.pixels as i64 {
                break;
            }
            let to = span.get(1).map_or(i64::MAX, |&t| i64::from(t) - start).min(self.cols.pixels as i64);
            let (from, to) = (from.max(0) as usize, to as usize);
            // Bins of which the span has the end, then whole bins, then bins of which it has the beginning.
            let mut j = cols.end.partition_point(|&end| end <= from);
            while j < size && cols.first[j] < from.min(to) {
                sums[j] += cols.between(j, from, to);
                j += 1;
            }
            let whole = cols.end.partition_point(|&end| end <= to).max(j);
            sums[j..whole].iter_mut().zip(&cols.total[j..]).for_each(|(sum, total)| *sum += total);
            j = whole;
            while j < size && cols.first[j] < to {
                sums[j] += cols.between(j, from, to);
                j += 1;
            }
        }
    }

    /// The mean of bin (i, j) in mmcv's order.
    #[cold]
    fn mean(&self, i: usize, j: usize) -> f32 {
        let mut sum = 0f32;
        for iy in 0..self.rows.grid {
            let (y0, y1, ly) = self.rows.sample(i, iy);
            let hy = 1.0 - ly;
            let [top, bottom] = [y0, y1].map(|y| y * self.width_px);
            let x = self.cols.sample(j, 0).0;
            let (mut at_top, mut at_bottom) = (self.toggles_to(0, top + x), self.toggles_to(0, bottom + x));
            for ix in 0..self.cols.grid {
                let (x0, x1, lx) = self.cols.sample(j, ix);
                let hx = 1.0 - lx;
                at_top = self.toggles_from(at_top, top + x0);
                at_bottom = self.toggles_from(at_bottom, bottom + x0);
                let set = |at: usize, weight: f32| if at % 2 == 1 { weight } else { 0.0 };
                sum += set(at_top, hy * hx)
                    + set(self.toggles_from(at_top, top + x1), hy * lx)
                    + set(at_bottom, ly * hx)
                    + set(self.toggles_from(at_bottom, bottom + x1), ly * lx);
            }
        }
        sum / (self.rows.grid * self.cols.grid) as f32
    }

    /// Toggles up to pixel `p`, of those from the `from`-th on by a binary search.
    fn toggles_to(&self, from: usize, p: usize) -> usize {
        from + self.toggles[from..].partition_point(|&t| i64::from(t) <= p as i64)
    }

    /// The same, step by step: for a pixel near by.
    fn toggles_from(&self, from: usize, p: usize) -> usize {
        from + self.toggles[from..].iter().take_while(|&&t| i64::from(t) <= p as i64).count()
    }
}
