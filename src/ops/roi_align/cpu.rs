//! RoIAlign on the CPU.
//!
//! A bin's sampling points form a grid and bilinear weights are products, so the mean over a bin is a weighted sum over
//! rows × columns: each axis gets a small table (pixel range and weight per bin, samples that share a pixel merged),
//! and both passes are the same loop, a sum of a few weighted pixels over all channels. Forward gathers features into
//! bins, backward gathers bins into features: each gradient element is written by one task, in RoI order.

use rayon::prelude::*;

use super::RoiAlign;

/// Rows of a gradient image that one task owns. Any value gives the same result.
const BAND_ROWS: usize = 4;
/// RoIs of one forward task.
const ROIS_PER_TASK: usize = 4;
/// Channels summed in registers at once.
const CHANNELS: usize = 64;

/// One pyramid level `[N,H,W,C]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct LevelShape {
    pub h: usize,
    pub w: usize,
    pub stride_px: f32,
}

/// `S` boxes for each image, `[N,S,4]`.
pub(super) struct Rois<'a> {
    pub boxes: &'a [f32],
    /// `[N,S]`: negative: skipped, its output is 0.
    pub valid: &'a [i32],
    pub per_image: usize,
}

impl Rois<'_> {
    fn get(&self, r: usize) -> [f32; 4] {
        self.boxes[4 * r..4 * r + 4].try_into().expect("four numbers")
    }
}

/// `y [N·S,PH,PW,C]` from `xs[l] [N,H_l,W_l,C]`.
pub(super) fn forward(y: &mut [f32], xs: &[&[f32]], levels: &[LevelShape], rois: &Rois, c: usize, p: &RoiAlign) {
    let row = p.ph * p.pw * c;
    if row == 0 {
        return;
    }
    y.par_chunks_mut(ROIS_PER_TASK * row).enumerate().for_each(|(task, y)| {
        let mut scratch = Scratch::default();
        for (i, y) in y.chunks_exact_mut(row).enumerate() {
            let r = task * ROIS_PER_TASK + i;
            if rois.valid[r] < 0 {
                y.fill(0.0);
                continue;
            }
            let roi = rois.get(r);
            let l = p.level(roi, levels.len());
            let size = levels[l].h * levels[l].w * c;
            scratch.place(roi, &levels[l], p);
            forward_roi(y, &xs[l][r / rois.per_image * size..][..size], levels[l].w, c, p, &mut scratch);
        }
    });
}

fn forward_roi(y: &mut [f32], x: &[f32], w: usize, c: usize, p: &RoiAlign, s: &mut Scratch) {
    for i in 0..p.ph {
        let (row0, row_weights) = s.rows.bin(i);
        for j in 0..p.pw {
            let (col0, col_weights) = s.cols.bin(j);
            s.taps.clear();
            for (a, &wy) in row_weights.iter().enumerate() {
                for (b, &wx) in col_weights.iter().enumerate() {
                    s.taps.push((((row0 + a) * w + col0 + b) * c, wy * wx));
                }
            }
            weighted_sum::<false>(&mut y[(i * p.pw + j) * c..][..c], x, &s.taps);
        }
    }
}

/// `dxs[l] [N,H_l,W_l,C]`, overwritten, from `dy [N·S,PH,PW,C]`.
pub(super) fn backward(dxs: &mut [&mut [f32]], levels: &[LevelShape], dy: &[f32], rois: &Rois, c: usize, p: &RoiAlign) {
    let bands = dxs.par_iter_mut().enumerate().flat_map(|(l, dx)| {
        let LevelShape { h, w, .. } = levels[l];
        dx.par_chunks_mut((h * w * c).max(1)).enumerate().flat_map(move |(batch, image)| {
            image.par_chunks_mut((BAND_ROWS * w * c).max(1)).enumerate().map(move |(band, dx)| (l, batch, band, dx))
        })
    });
    bands.for_each(|(l, batch, band, dx)| {
        dx.fill(0.0);
        let mut scratch = Scratch::default();
        let row0 = band * BAND_ROWS;
        let row1 = row0 + dx.len() / (levels[l].w * c);
        for r in batch * rois.per_image..(batch + 1) * rois.per_image {
            let roi = rois.get(r);
            if rois.valid[r] >= 0 && touches(roi, &levels[l], row0, row1, p) && p.level(roi, levels.len()) == l {
                let dy = &dy[r * p.ph * p.pw * c..][..p.ph * p.pw * c];
                scratch.place(roi, &levels[l], p);
                backward_roi(dx, row0, row1, dy, levels[l].w, c, p, &mut scratch);
            }
        }
    });
}

fn backward_roi(
    dx: &mut [f32],
    row0: usize,
    row1: usize,
    dy: &[f32],
    w: usize,
    c: usize,
    p: &RoiAlign,
    s: &mut Scratch,
) {
    let (top, bottom) = s.rows.pixels();
    let (left, right) = s.cols.pixels();
    s.col_bins.clear();
    s.col_bins.extend((left..right).map(|col| s.cols.bins_of(col)));
    for row in top.max(row0)..bottom.min(row1) {
        let bins_y = s.rows.bins_of(row);
        for col in left..right {
            s.taps.clear();
            for j in s.col_bins[col - left].clone() {
                let wx = s.cols.weight(j, col);
                for i in bins_y.clone() {
                    s.taps.push(((i * p.pw + j) * c, wx * s.rows.weight(i, row)));
                }
            }
            weighted_sum::<true>(&mut dx[((row - row0) * w + col) * c..][..c], dy, &s.taps);
        }
    }
}

/// False only if no sample of the RoI can lie in rows `row0..row1`: a cheap test before the exact tables.
fn touches(roi: [f32; 4], level: &LevelShape, row0: usize, row1: usize, p: &RoiAlign) -> bool {
    let (start, size) = p.extent(roi[1], roi[3], level.stride_px);
    // A sample at y adds to floor(y) and floor(y) + 1; samples in [-1, 0) go to row 0 and those in (H - 1, H] to row H
    // - 1.
    let first = start.min(start + size).clamp(-1.0, level.h as f32);
    let last = start.max(start + size).clamp(-1.0, level.h as f32);
    first - 2.0 <= row1 as f32 && last + 2.0 >= row0 as f32
}

/// `out = Σ weight · x[offset..]`, or `out += …`, over the length of `out`.
#[inline]
fn weighted_sum<const ADD: bool>(out: &mut [f32], x: &[f32], taps: &[(usize, f32)]) {
    let mut at = 0;
    let mut blocks = out.chunks_exact_mut(CHANNELS);
    for out in &mut blocks {
        let mut acc = [0.0f32; CHANNELS];
        if ADD {
            acc.copy_from_slice(out);
        }
        for &(offset, weight) in taps {
            let x: &[f32; CHANNELS] = x[offset + at..][..CHANNELS].try_into().expect("a full block");
            for k in 0..CHANNELS {
                acc[k] = fma(weight, x[k], acc[k]);
            }
        }
        out.copy_from_slice(&acc);
        at += CHANNELS;
    }
    for (k, out) in blocks.into_remainder().iter_mut().enumerate() {
        let start = if ADD { *out } else { 0.0 };
        *out = taps.iter().fold(start, |sum, &(offset, weight)| fma(weight, x[offset + at + k], sum));
    }
}

/// One rounding where the machine has the instruction; the library call that replaces it elsewhere is far too slow.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_feature = "fma") { a.mul_add(b, c) } else { a * b + c }
}

/// Tables of the RoI at hand.
#[derive(Default)]
struct Scratch {
    rows: Axis,
    cols: Axis,
    /// Backward: the bins of each column.
    col_bins: Vec<std::ops::Range<usize>>,
    /// (element offset, weight)
    taps: Vec<(usize, f32)>,
}

impl Scratch {
    fn place(&mut self, roi: [f32; 4], level: &LevelShape, p: &RoiAlign) {
        let (start, size) = p.extent(roi[1], roi[3], level.stride_px);
        self.rows.fill(start, size, p.ph, level.h, p.sampling_ratio);
        let (start, size) = p.extent(roi[0], roi[2], level.stride_px);
        self.cols.fill(start, size, p.pw, level.w, p.sampling_ratio);
    }
}

/// The pixels that each bin of one axis averages: a range of pixels and their weights.
#[derive(Default)]
struct Axis {
    /// Per bin: first pixel, and where its weights begin. One entry more than bins closes the last.
    bins: Vec<(usize, usize)>,
    weights: Vec<f32>,
}

impl Axis {
    /// `bins` bins over `[start, start + size]` of an axis of `pixels` pixels. Samples in `[-1, 0)` and `(pixels - 1,
    /// pixels]` take the border pixel, those farther out (and NaN) count but add nothing.
    fn fill(&mut self, start: f32, size: f32, bins: usize, pixels: usize, sampling_ratio: usize) {
        self.bins.clear();
        self.weights.clear();
        let bin = size / bins as f32;
        let grid = if sampling_ratio > 0 { sampling_ratio as f32 } else { bin_samples(size, bins) };
        let share = 1.0 / grid;
        for b in 0..bins {
            let at = self.weights.len();
            let origin = start + b as f32 * bin;
            // The samples that can be inside: a RoI far larger than the image must not cost more than the image.
            let inside = |edge: f32| (edge - origin) / bin * grid - 0.5;
            let first = (inside(-1.0).floor() - 1.0).clamp(0.0, grid);
            let (first, count) = if bin > 0.0 {
                (first, ((inside(pixels as f32).ceil() + 2.0).clamp(0.0, grid) - first) as usize)
            } else {
                (0.0, if bin == 0.0 { grid as usize } else { 0 })
            };
            let mut low0 = 0;
            for i in 0..count {
                let v = origin + (first + i as f32 + 0.5) * bin / grid;
                if !(v >= -1.0 && v <= pixels as f32) {
                    continue;
                }
                let v = v.max(0.0);
                let low = (v as usize).min(pixels - 1);
                let high = (low + 1).min(pixels - 1);
                let frac = if low == high { 0.0 } else { v - low as f32 };
                if self.weights.len() == at {
                    low0 = low;
                }
                while self.weights.len() - at <= high - low0 {
                    self.weights.push(0.0);
                }
                self.weights[at + low - low0] += (1.0 - frac) * share;
                self.weights[at + high - low0] += frac * share;
            }
            self.bins.push((low0, at));
        }
        self.bins.push((0, self.weights.len()));
    }

    /// First pixel and weights of bin `b`.
    fn bin(&self, b: usize) -> (usize, &[f32]) {
        (self.bins[b].0, &self.weights[self.bins[b].1..self.bins[b + 1].1])
    }

    fn weight(&self, b: usize, pixel: usize) -> f32 {
        let (first, weights) = self.bin(b);
        weights[pixel - first]
    }

    /// The pixels that any bin uses.
    fn pixels(&self) -> (usize, usize) {
        let used = |b: &usize| self.bins[*b].1 < self.bins[*b + 1].1;
        let n = self.bins.len() - 1;
        match ((0..n).find(used), (0..n).rev().find(used)) {
            (Some(a), Some(z)) => (self.bins[a].0, self.bins[z].0 + self.bin(z).1.len()),
            _ => (0, 0),
        }
    }

    /// The bins that use `pixel`: consecutive, since samples are in order.
    fn bins_of(&self, pixel: usize) -> std::ops::Range<usize> {
        let uses = |b: &usize| {
            let (first, weights) = self.bin(*b);
            pixel >= first && pixel < first + weights.len()
        };
        let n = self.bins.len() - 1;
        match (0..n).find(uses) {
            Some(a) => a..(a..n).take_while(uses).count() + a,
            None => 0..0,
        }
    }
}

/// Samples per bin of an adaptive grid: one per feature pixel, `ceil(size / bins)`; none in an empty or NaN RoI.
fn bin_samples(size: f32, bins: usize) -> f32 {
    let n = (size / bins as f32).ceil();
    if n > 0.0 { n } else { 0.0 }
}
