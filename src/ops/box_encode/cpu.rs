//! CPU kernels of box encoding.

use rayon::prelude::*;

/// Boxes of one parallel task.
const CHUNK: usize = 1024;

/// One box `p` and its ground truth `g`, in mmdetection's order of operations.
fn encode(p: &[f32], g: &[f32], stds: &[f32; 4]) -> [f32; 4] {
    let axis = |p0: f32, p1: f32, g0: f32, g1: f32| {
        let (p_side, g_side) = (p1 - p0, g1 - g0);
        (((g0 + g1) * 0.5 - (p0 + p1) * 0.5) / p_side, (g_side / p_side).ln())
    };
    let (dx, dw) = axis(p[0], p[2], g[0], g[2]);
    let (dy, dh) = axis(p[1], p[3], g[1], g[3]);
    [dx / stds[0], dy / stds[1], dw / stds[2], dh / stds[3]]
}

fn ground_truth(gt: i32, g: usize) -> Option<usize> {
    usize::try_from(gt).ok().filter(|&i| i < g)
}

pub(super) fn forward(y: &mut [f32], rois: &[f32], gt_boxes: &[f32], gt: &[i32], s: usize, g: usize, stds: [f32; 4]) {
    let rows = y.par_chunks_mut(4 * CHUNK).zip(rois.par_chunks(4 * CHUNK)).zip(gt.par_chunks(CHUNK));
    rows.enumerate().for_each(|(chunk, ((y, rois), gt))| {
        for (j, ((y, p), &gt)) in y.chunks_exact_mut(4).zip(rois.chunks_exact(4)).zip(gt).enumerate() {
            let image = (chunk * CHUNK + j) / s;
            let row = ground_truth(gt, g).map_or([0.0; 4], |i| encode(p, &gt_boxes[4 * (image * g + i)..][..4], &stds));
            y.copy_from_slice(&row);
        }
    });
}

pub(super) fn labels(y: &mut [i32], gt: &[i32], idx: &[i32], gt_labels: &[i32], s: usize, g: usize, background: i32) {
    for (r, ((y, &gt), &i)) in y.iter_mut().zip(gt).zip(idx).enumerate() {
        *y = match ground_truth(gt, g) {
            _ if i < 0 => -1,
            Some(k) => gt_labels[r / s * g + k],
            None => background,
        };
    }
}

/// What dense targets are made of.
pub(super) struct Dense<'a> {
    pub(super) anchors: &'a [f32],
    pub(super) assigned: &'a [i32],
    pub(super) gt_boxes: &'a [f32],
    pub(super) gt_labels: &'a [i32],
    pub(super) g: usize,
    pub(super) background: i32,
    pub(super) stds: [f32; 4],
}

/// `labels`: classes and box labels `[B,N]`; boxes `[B,N,4]`; counts `[B,2]`.
pub(super) fn dense_targets(labels: (&mut [i32], &mut [i32]), boxes: &mut [f32], counts: &mut [i32], x: &Dense<'_>) {
    let n = x.anchors.len() / 4;
    if n == 0 {
        return;
    }
    let images = labels.0.chunks_mut(n).zip(labels.1.chunks_mut(n)).zip(boxes.chunks_mut(4 * n));
    let images = images.zip(counts.chunks_exact_mut(2)).zip(x.assigned.chunks(n));
    for (image, ((((classes, box_labels), boxes), counts), assigned)) in images.enumerate() {
        let (gt_boxes, gt_labels) = (&x.gt_boxes[4 * image * x.g..], &x.gt_labels[image * x.g..][..x.g]);
        let chunks = classes.par_chunks_mut(CHUNK).zip(box_labels.par_chunks_mut(CHUNK));
        let chunks = chunks.zip(boxes.par_chunks_mut(4 * CHUNK)).zip(x.anchors.par_chunks(4 * CHUNK));
        let each =
            chunks.zip(assigned.par_chunks(CHUNK)).map(|((((classes, box_labels), boxes), anchors), assigned)| {
                let (mut positives, mut negatives) = (0, 0);
                let rows = boxes.chunks_exact_mut(4).zip(anchors.chunks_exact(4)).zip(assigned);
                for ((class, box_label), ((target, anchor), &a)) in classes.iter_mut().zip(box_labels).zip(rows) {
                    let truth = ground_truth(a.wrapping_sub(1), x.g);
                    *class = truth.map_or(if a == 0 { x.background } else { -1 }, |i| gt_labels[i]);
                    *box_label = if truth.is_some() { 0 } else { -1 };
                    target
                        .copy_from_slice(&truth.map_or([0.0; 4], |i| encode(anchor, &gt_boxes[4 * i..][..4], &x.stds)));
                    positives += i32::from(truth.is_some());
                    negatives += i32::from(a == 0);
                }
                (positives, negatives)
            });
        (counts[0], counts[1]) = each.reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    }
}
