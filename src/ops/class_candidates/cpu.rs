//! CPU kernel of the candidates.

use rayon::prelude::*;

use super::CandidateShape;
use crate::ops::box_decode::cpu::{decode, image_size};

/// The inputs of the op.
pub(super) struct Inputs<'a> {
    pub(super) probs: &'a [f32],
    pub(super) deltas: &'a [f32],
    pub(super) rois: &'a [f32],
    pub(super) valid: &'a [i32],
    pub(super) sizes: &'a [f32],
    pub(super) scale: Option<&'a [f32]>,
}

/// Boxes, scores, classes.
type Outputs<'a> = (&'a mut [f32], &'a mut [f32], &'a mut [i32]);

pub(super) fn forward(out: Outputs<'_>, x: &Inputs<'_>, stds: &[f32; 4], threshold: f32, s: &CandidateShape) {
    if s.n == 0 {
        return;
    }
    let images = out.0.par_chunks_mut(4 * s.n).zip(out.1.par_chunks_mut(s.n)).zip(out.2.par_chunks_mut(s.n));
    images.enumerate().for_each(|(b, ((boxes, scores), classes))| {
        let found = image((boxes, scores, classes), x, stds, threshold, s, b);
        boxes[4 * found..].fill(0.0);
        scores[found..].fill(0.0);
        classes[found..].fill(-1);
    });
}

/// Fills the front of one image's outputs; returns how many.
fn image(
    (boxes, scores, classes): Outputs<'_>,
    x: &Inputs<'_>,
    stds: &[f32; 4],
    threshold: f32,
    s: &CandidateShape,
    b: usize,
) -> usize {
    let size = image_size(x.sizes, b);
    let [sx, sy] = x.scale.map_or([1.0; 2], |scale| [1.0 / scale[2 * b], 1.0 / scale[2 * b + 1]]);
    let mut slots = boxes.chunks_exact_mut(4).zip(scores).zip(classes);
    let mut found = 0;
    for row in (b * s.r..(b + 1) * s.r).filter(|&row| x.valid[row] >= 0) {
        let roi = &x.rois[4 * row..][..4];
        let probs = &x.probs[row * (s.k + 1)..][..s.k];
        for (class, &p) in probs.iter().enumerate().filter(|(_, p)| **p > threshold) {
            let Some(((slot, score), label)) = slots.next() else { return found };
            let group = row * s.groups + if s.groups == 1 { 0 } else { class };
            let [x0, y0, x1, y1] = decode(roi, &x.deltas[4 * group..][..4], stds, size);
            slot.copy_from_slice(&[x0 * sx, y0 * sy, x1 * sx, y1 * sy]);
            (*score, *label) = (p, class as i32);
            found += 1;
        }
    }
    found
}
