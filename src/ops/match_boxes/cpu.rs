//! CPU kernels of box matching: two streaming passes over boxes, ground truth in the inner loop.

use rayon::prelude::*;

use super::{IGNORED, INVALID, Matcher};
use crate::tensor::{DType, Tensor};

/// Boxes of one task.
const TASK: usize = 2048;

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
    fn boxes_of(&self, image: usize, task: usize) -> &[[f32; 4]] {
        let all = if self.shared { self.boxes } else { &self.boxes[image * self.n * 4..][..self.n * 4] };
        let (boxes, _) = all.as_chunks();
        &boxes[task * TASK..self.n.min((task + 1) * TASK)]
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
    let tasks = tasks(p.n);
    for image in 0..p.count.len() {
        let assigned = &mut assigned[image * p.n..][..p.n];
        let best = &mut best[image * tasks * p.g..][..tasks * p.g];
        let gt = p.gt_of(image);
        if gt.is_empty() {
            assigned.par_chunks_mut(TASK).for_each(|a| a.iter_mut().filter(|a| **a != INVALID).for_each(|a| *a = 0));
            continue;
        }
        // gt is not empty, so p.g is at least 1.
        assigned.par_chunks_mut(TASK).zip(best.par_chunks_mut(p.g)).enumerate().for_each(|(task, (assigned, best))| {
            best_of_boxes(assigned, best, p.boxes_of(image, task), gt, p.matcher);
        });
        if p.matcher.low_quality {
            let (first, rest) = best.split_at_mut(p.g);
            for row in rest.chunks(p.g) {
                first.iter_mut().zip(row).for_each(|(a, &b)| *a = a.max(b));
            }
            let best = &*first;
            assigned.par_chunks_mut(TASK).enumerate().for_each(|(task, assigned)| {
                low_quality(assigned, best, p.boxes_of(image, task), gt, p.matcher.min_pos_iou);
            });
        }
    }
}

fn best_of_boxes(assigned: &mut [i32], best: &mut [f32], boxes: &[[f32; 4]], gt: &[[f32; 4]], m: Matcher) {
    best.fill(0.0);
    for (a, bbox) in assigned.iter_mut().zip(boxes) {
        if *a == INVALID {
            continue;
        }
        let (mut max, mut who) = (0.0f32, 0);
        for (g, (truth, best)) in gt.iter().zip(best.iter_mut()).enumerate() {
            let v = iou(truth, bbox);
            if v > *best {
                *best = v;
            }
            if v > max {
                (max, who) = (v, g);
            }
        }
        *a = if max >= m.pos_iou {
            who as i32 + 1
        } else if max < m.neg_iou {
            0
        } else {
            IGNORED
        };
    }
}

/// All boxes whose IoU with a ground truth equals its largest one are its own; later ground truths override.
fn low_quality(assigned: &mut [i32], best: &[f32], boxes: &[[f32; 4]], gt: &[[f32; 4]], min_pos_iou: f32) {
    for (a, bbox) in assigned.iter_mut().zip(boxes) {
        if *a == INVALID {
            continue;
        }
        for (g, (truth, &best)) in gt.iter().zip(best).enumerate() {
            if best >= min_pos_iou && iou(truth, bbox) == best {
                *a = g as i32 + 1;
            }
        }
    }
}

#[inline]
fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let overlap = w * h;
    let union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap;
    overlap / if union < 1e-6 { 1e-6 } else { union } // NaN stays: it compares false with every threshold
}
