//! Matching on the CPU, without the matrix of IoUs.
//!
//! Tasks take chunks of boxes. The first pass gives each box its best ground truth, and each ground truth its best IoU in
//! the chunk; the second, for low-quality matches, repeats only the (chunk, ground truth) pairs that hold the best IoU of
//! that ground truth: few of them.

use rayon::prelude::*;

use super::{MatchBoxes, takes_part};

/// Boxes of one task.
const CHUNK: usize = 1024;
/// Boxes whose IoU with one ground truth is taken in one vector loop.
const BLOCK: usize = 64;

/// Elements of the workspace: best IoU of each ground truth in each chunk.
pub(super) fn workspace_len(b: usize, r: usize, g: usize) -> usize {
    b * r.div_ceil(CHUNK) * g
}

/// Which boxes take part.
#[derive(Clone, Copy)]
pub(super) enum ValidSlice<'a> {
    All,
    /// `[B,R]`, negative: not.
    Index(&'a [i32]),
    /// `sizes [B,4]` and the allowed border.
    Anchors(&'a [f32], Option<f32>),
}

impl<'a> ValidSlice<'a> {
    fn image(self, b: usize, r: usize) -> Self {
        match self {
            ValidSlice::All => ValidSlice::All,
            ValidSlice::Index(v) => ValidSlice::Index(&v[b * r..][..r]),
            ValidSlice::Anchors(sizes, border) => ValidSlice::Anchors(&sizes[4 * b..][..4], border),
        }
    }

    fn has(&self, i: usize, b: [f32; 4]) -> bool {
        match self {
            ValidSlice::All => true,
            ValidSlice::Index(v) => v[i] >= 0,
            ValidSlice::Anchors(size, border) => takes_part(b, size, *border),
        }
    }
}

/// `assigned [B,R]` from `boxes [R,4]` or `[B,R,4]`, `gt [B,G,4]`, `count [B]`.
pub(super) fn forward(
    assigned: &mut [i32],
    ws: &mut [f32],
    boxes: &[f32],
    gt: &[f32],
    count: &[i32],
    valid: ValidSlice<'_>,
    r: usize,
    p: &MatchBoxes,
) {
    if r == 0 || count.is_empty() {
        return;
    }
    let g = gt.len() / 4 / count.len();
    let chunks = r.div_ceil(CHUNK);
    let images = |b: usize| {
        let boxes = if boxes.len() == 4 * r { boxes } else { &boxes[b * 4 * r..][..4 * r] };
        let gt: &[[f32; 4]] = bytemuck::cast_slice(&gt[b * 4 * g..][..4 * g]);
        (boxes, &gt[..(count[b].max(0) as usize).min(g)], valid.image(b, r))
    };
    if g > 0 {
        assigned.par_chunks_mut(r).zip(ws.par_chunks_mut(chunks * g)).enumerate().for_each(|(b, (assigned, best))| {
            let (boxes, gt, valid) = images(b);
            assigned.par_chunks_mut(CHUNK).zip(best.par_chunks_mut(g)).enumerate().for_each(|(c, (assigned, best))| {
                first_pass(assigned, best, c * CHUNK, boxes, gt, &valid, p);
            });
            if p.low_quality {
                let best: &[f32] = best;
                assigned.par_chunks_mut(CHUNK).enumerate().for_each(|(c, assigned)| {
                    second_pass(assigned, best, c, boxes, gt, p);
                });
            }
        });
    } else {
        assigned.par_chunks_mut(r).enumerate().for_each(|(b, assigned)| {
            let (boxes, gt, valid) = images(b);
            first_pass(assigned, &mut [], 0, boxes, gt, &valid, p);
        });
    }
}

/// Thresholds: -2, -1, 0 or the best ground truth + 1; `best[j]` becomes the largest IoU of ground truth j here.
fn first_pass(
    assigned: &mut [i32],
    best: &mut [f32],
    first: usize,
    boxes: &[f32],
    gt: &[[f32; 4]],
    valid: &ValidSlice<'_>,
    p: &MatchBoxes,
) {
    best.fill(0.0);
    for (k, assigned) in assigned.chunks_mut(BLOCK).enumerate() {
        let at = first + k * BLOCK;
        let mut block = Block::load(&boxes[4 * at..][..4 * assigned.len()]);
        for (i, a) in assigned.iter_mut().enumerate() {
            let ok = !block.area[i].is_nan() && valid.has(at + i, block.get(i));
            *a = if ok { 0 } else { -2 };
            if !ok {
                block.clear(i);
            }
        }
        let bounds = block.bounds();
        let (mut max, mut argmax) = ([0.0f32; BLOCK], [0i32; BLOCK]);
        for (j, &g) in gt.iter().enumerate() {
            // Off the block: all IoUs are 0, which changes neither maximum.
            if g[0] >= bounds[2] || g[1] >= bounds[3] || g[2] <= bounds[0] || g[3] <= bounds[1] {
                continue;
            }
            let iou = block.iou(g);
            let mut top = best[j];
            for i in 0..BLOCK {
                let better = iou[i] > max[i];
                max[i] = if better { iou[i] } else { max[i] };
                argmax[i] = if better { j as i32 } else { argmax[i] };
                top = if iou[i] > top { iou[i] } else { top };
            }
            best[j] = top;
        }
        for (i, a) in assigned.iter_mut().enumerate().filter(|(_, a)| **a == 0) {
            *a = if !gt.is_empty() && max[i] >= p.pos_iou {
                argmax[i] + 1
            } else if gt.is_empty() || max[i] < p.neg_iou {
                0
            } else {
                -1
            };
        }
    }
}

/// Low-quality matches of chunk `c`: every valid box whose IoU is the ground truth's largest, later ground truths winning.
fn second_pass(assigned: &mut [i32], best: &[f32], c: usize, boxes: &[f32], gt: &[[f32; 4]], p: &MatchBoxes) {
    let g_all = best.len() / boxes.len().div_ceil(4 * CHUNK);
    for (j, &g) in gt.iter().enumerate() {
        let top = best[j..].iter().step_by(g_all).fold(0.0f32, |m, &v| if v > m { v } else { m });
        if top < p.min_pos_iou || best[c * g_all + j] != top {
            continue;
        }
        for (k, assigned) in assigned.chunks_mut(BLOCK).enumerate() {
            let at = c * CHUNK + k * BLOCK;
            let iou = Block::load(&boxes[4 * at..][..4 * assigned.len()]).iou(g);
            for (a, iou) in assigned.iter_mut().zip(iou) {
                if *a != -2 && iou == top {
                    *a = j as i32 + 1;
                }
            }
        }
    }
}

/// Boxes by coordinate.
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

    /// Makes box `i` one that meets nothing.
    fn clear(&mut self, i: usize) {
        (self.x0[i], self.y0[i], self.area[i]) = (f32::INFINITY, f32::INFINITY, 0.0);
        (self.x1[i], self.y1[i]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    }

    fn get(&self, i: usize) -> [f32; 4] {
        [self.x0[i], self.y0[i], self.x1[i], self.y1[i]]
    }

    fn bounds(&self) -> [f32; 4] {
        let min = |v: &[f32]| v.iter().fold(f32::INFINITY, |m, &v| m.min(v));
        let max = |v: &[f32]| v.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        [min(&self.x0), min(&self.y0), max(&self.x1), max(&self.y1)]
    }

    /// mmdetection's IoU: no +1, the union at least 1e-6.
    #[inline]
    fn iou(&self, g: [f32; 4]) -> [f32; BLOCK] {
        let g_area = (g[2] - g[0]) * (g[3] - g[1]);
        let mut iou = [0.0; BLOCK];
        for i in 0..BLOCK {
            let (left, top) = (if self.x0[i] > g[0] { self.x0[i] } else { g[0] }, if self.y0[i] > g[1] { self.y0[i] } else { g[1] });
            let (right, bottom) =
                (if self.x1[i] < g[2] { self.x1[i] } else { g[2] }, if self.y1[i] < g[3] { self.y1[i] } else { g[3] });
            let (w, h) = (right - left, bottom - top);
            let inter = (if w > 0.0 { w } else { 0.0 }) * (if h > 0.0 { h } else { 0.0 });
            let union = g_area + self.area[i] - inter;
            iou[i] = inter / (if union > 1e-6 { union } else { 1e-6 });
        }
        iou
    }
}
