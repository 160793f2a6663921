//! Matching on the CPU, without the matrix of IoUs.
//!
//! Tasks take chunks of boxes. The first pass gives each box its best ground truth, and each ground truth its best IoU
//! in the chunk; the second, for low-quality matches, repeats only the (chunk, ground truth) pairs that hold the best
//! IoU of that ground truth: few of them.

use rayon::prelude::*;

use super::{IGNORED, INVALID, Matcher};
use crate::tensor::{DType, Tensor};

/// Boxes of one task.
const TASK: usize = 1024;
/// Boxes whose IoU with one ground truth is taken in one vector loop.
const BLOCK: usize = 64;

pub(super) fn tasks(n: usize) -> usize {
    n.div_ceil(TASK)
}

pub(super) struct Problem<'a> {
    pub boxes: &'a [f32],
    pub shared: bool,
    pub gt: &'a [f32],
    pub count: &'a [i32],
    pub n: usize,
    pub g: usize,
    pub matcher: Matcher,
}

impl Problem<'_> {
    fn boxes_of(&self, image: usize, task: usize) -> &[f32] {
        let all = if self.shared { self.boxes } else { &self.boxes[image * self.n * 4..][..self.n * 4] };
        &all[4 * task * TASK..4 * self.n.min((task + 1) * TASK)]
    }

    fn gt_of(&self, image: usize) -> &[[f32; 4]] {
        let (gt, _) = self.gt[image * self.g * 4..][..self.g * 4].as_chunks();
        &gt[..usize::try_from(self.count[image]).unwrap_or(0).min(self.g)]
    }
}

/// `best` is `[B,tasks,G]`: each task's largest IoU with each ground truth.
pub(super) fn forward(assigned: &mut [i32], best: &mut [f32], valid: Option<&Tensor>, p: &Problem<'_>) {
    if p.n == 0 {
        return;
    }
    let is_valid = |i: usize| match valid {
        None => true,
        Some(v) if v.dtype() == DType::U8 => v.slice::<u8>()[i] > 0,
        Some(v) => v.i32s()[i] > 0,
    };
    // Validity is written first, on this thread: tensors do not cross threads.
    for (i, a) in assigned.iter_mut().enumerate() {
        *a = if is_valid(i) { IGNORED } else { INVALID };
    }
    if p.g == 0 {
        assigned.iter_mut().filter(|a| **a != INVALID).for_each(|a| *a = 0);
        return;
    }
    let images = assigned.par_chunks_mut(p.n).zip(best.par_chunks_mut(tasks(p.n) * p.g)).enumerate();
    images.for_each(|(image, (assigned, best))| {
        let gt = p.gt_of(image);
        if gt.is_empty() {
            assigned.iter_mut().filter(|a| **a != INVALID).for_each(|a| *a = 0);
            return;
        }
        assigned.par_chunks_mut(TASK).zip(best.par_chunks_mut(p.g)).enumerate().for_each(|(task, (assigned, best))| {
            best_of_boxes(assigned, best, p.boxes_of(image, task), gt, p.matcher);
        });
        if p.matcher.low_quality {
            let best: &[f32] = best;
            assigned.par_chunks_mut(TASK).enumerate().for_each(|(task, assigned)| {
                for (g, truth) in gt.iter().enumerate() {
                    let top = best[g..].iter().step_by(p.g).fold(0.0f32, |m, &v| m.max(v));
                    if top >= p.matcher.min_pos_iou && best[task * p.g + g] == top {
                        low_quality(assigned, p.boxes_of(image, task), truth, g as i32 + 1, top);
                    }
                }
            });
        }
    });
}

fn best_of_boxes(assigned: &mut [i32], best: &mut [f32], boxes: &[f32], gt: &[[f32; 4]], m: Matcher) {
    best.fill(0.0);
    for (assigned, boxes) in assigned.chunks_mut(BLOCK).zip(boxes.chunks(4 * BLOCK)) {
        let mut block = Block::load(boxes);
        for (i, a) in assigned.iter().enumerate() {
            if *a == INVALID || block.area[i].is_nan() {
                block.clear(i);
            }
        }
        let bounds = block.bounds();
        let (mut max, mut who) = ([0.0f32; BLOCK], [0i32; BLOCK]);
        for (g, (truth, best)) in gt.iter().zip(best.iter_mut()).enumerate() {
            // A ground truth outside the block's bounds: all IoUs are 0, which changes no maximum.
            if truth[0] >= bounds[2] || truth[1] >= bounds[3] || truth[2] <= bounds[0] || truth[3] <= bounds[1] {
                continue;
            }
            let iou = block.iou(truth);
            let mut top = *best;
            for i in 0..BLOCK {
                let better = iou[i] > max[i];
                max[i] = if better { iou[i] } else { max[i] };
                who[i] = if better { g as i32 } else { who[i] };
                top = if iou[i] > top { iou[i] } else { top };
            }
            *best = top;
        }
        for ((a, &max), &who) in assigned.iter_mut().zip(&max).zip(&who).filter(|((a, _), _)| **a != INVALID) {
            *a = match max {
                max if max >= m.pos_iou => who + 1,
                max if max < m.neg_iou => 0,
                _ => IGNORED,
            };
        }
    }
}

/// Assigns `own` to the boxes whose IoU with `truth` is its largest IoU, `top`. The caller goes through the ground
/// truths in order, so later ones override earlier ones.
fn low_quality(assigned: &mut [i32], boxes: &[f32], truth: &[f32; 4], own: i32, top: f32) {
    for (assigned, boxes) in assigned.chunks_mut(BLOCK).zip(boxes.chunks(4 * BLOCK)) {
        let iou = Block::load(boxes).iou(truth);
        for (a, _) in assigned.iter_mut().zip(iou).filter(|(a, iou)| **a != INVALID && *iou == top) {
            *a = own;
        }
    }
}

/// A block of boxes, one array per coordinate.
struct Block {
    x0: [f32; BLOCK],
    y0: [f32; BLOCK],
    x1: [f32; BLOCK],
    y1: [f32; BLOCK],
    area: [f32; BLOCK],
}

impl Block {
    fn load(boxes: &[f32]) -> Self {
        let none = [0.0; BLOCK];
        let mut s = Self { x0: none, y0: none, x1: none, y1: none, area: none };
        for i in boxes.len() / 4..BLOCK {
            s.clear(i);
        }
        for (i, b) in boxes.chunks_exact(4).enumerate() {
            (s.x0[i], s.y0[i], s.x1[i], s.y1[i]) = (b[0], b[1], b[2], b[3]);
            s.area[i] = (b[2] - b[0]) * (b[3] - b[1]);
        }
        s
    }

    /// Replaces box `i` by one that overlaps nothing.
    fn clear(&mut self, i: usize) {
        (self.x0[i], self.y0[i], self.area[i]) = (f32::INFINITY, f32::INFINITY, 0.0);
        (self.x1[i], self.y1[i]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    }

    fn bounds(&self) -> [f32; 4] {
        let min = |v: &[f32]| v.iter().fold(f32::INFINITY, |m, &v| m.min(v));
        let max = |v: &[f32]| v.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        [min(&self.x0), min(&self.y0), max(&self.x1), max(&self.y1)]
    }

    /// mmdetection's IoU: no +1 in the sides, and the union is at least 1e-6.
    #[inline]
    fn iou(&self, g: &[f32; 4]) -> [f32; BLOCK] {
        let g_area = (g[2] - g[0]) * (g[3] - g[1]);
        let mut iou = [0.0; BLOCK];
        for (i, iou) in iou.iter_mut().enumerate() {
            let (left, top) =
                (if self.x0[i] > g[0] { self.x0[i] } else { g[0] }, if self.y0[i] > g[1] { self.y0[i] } else { g[1] });
            let (right, bottom) =
                (if self.x1[i] < g[2] { self.x1[i] } else { g[2] }, if self.y1[i] < g[3] { self.y1[i] } else { g[3] });
            let (w, h) = (right - left, bottom - top);
            let inter = (if w > 0.0 { w } else { 0.0 }) * (if h > 0.0 { h } else { 0.0 });
            let union = g_area + self.area[i] - inter;
            *iou = inter / (if union < 1e-6 { 1e-6 } else { union });
        }
        iou
    }
}
