//! CPU loops of dense_targets.

use rayon::prelude::*;

use crate::ops::box_encode::cpu::{encode, ground_truth};

/// Anchors of one parallel task.
const CHUNK: usize = 1024;

/// The inputs of the op.
pub(super) struct Inputs<'a> {
    pub(super) anchors: &'a [f32],
    pub(super) assigned: &'a [i32],
    pub(super) gt_boxes: &'a [f32],
    pub(super) gt_labels: &'a [i32],
    pub(super) g: usize,
    pub(super) background: i32,
    pub(super) stds: [f32; 4],
}

/// `labels`: classes and box labels `[B,N]`; boxes `[B,N,4]`; counts `[B,2]`.
pub(super) fn forward(labels: (&mut [i32], &mut [i32]), boxes: &mut [f32], counts: &mut [i32], x: &Inputs<'_>) {
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
