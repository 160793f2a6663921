//! CPU loops of pair_candidates.

use rayon::prelude::*;

use super::{PairRule, PairShape};
use crate::ops::box_decode::cpu::{decode, image_size};

/// Boxes, scores, classes.
type Outputs<'a> = (&'a mut [f32], &'a mut [f32], &'a mut [i32]);

/// The inputs of the op.
pub(super) struct Inputs<'a> {
    pub(super) logits: &'a [f32],
    pub(super) pairs: &'a [i32],
    pub(super) rows: Option<&'a [i32]>,
    pub(super) anchors: &'a [f32],
    pub(super) deltas: &'a [f32],
    pub(super) sizes: &'a [f32],
    pub(super) scale: Option<&'a [f32]>,
}

/// Pairs of one parallel task.
const CHUNK: usize = 1024;

pub(super) fn forward(out: Outputs<'_>, x: &Inputs<'_>, rule: &PairRule, s: &PairShape) {
    let chunks = out.0.par_chunks_mut(4 * CHUNK).zip(out.1.par_chunks_mut(CHUNK)).zip(out.2.par_chunks_mut(CHUNK));
    chunks.enumerate().for_each(|(chunk, ((boxes, scores), classes))| {
        for (j, ((slot, score), label)) in boxes.chunks_exact_mut(4).zip(scores).zip(classes).enumerate() {
            let i = chunk * CHUNK + j;
            let (found, p, class) = pair(x, rule, s, i / s.p, x.pairs[i]).unwrap_or(([0.0; 4], 0.0, -1));
            slot.copy_from_slice(&found);
            (*score, *label) = (p, class);
        }
    });
}

/// Box, score and class of one pair, if it is a candidate.
fn pair(x: &Inputs<'_>, rule: &PairRule, s: &PairShape, b: usize, pair: i32) -> Option<([f32; 4], f32, i32)> {
    let at = usize::try_from(pair).ok().filter(|&at| at < s.r * s.k)?;
    let (row, class) = (at / s.k, at % s.k);
    let anchor = x.rows.map_or(Some(row), |rows| usize::try_from(rows[b * s.r + row]).ok()).filter(|&i| i < s.n)?;
    let p = sigmoid(x.logits[b * s.r * s.k + at]);
    if p.is_nan() || p <= rule.score_threshold {
        return None;
    }
    let own = &x.deltas[4 * (b * s.n + anchor)..][..4];
    let [x0, y0, x1, y1] = decode(&x.anchors[4 * anchor..][..4], own, &rule.stds, image_size(x.sizes, b));
    let [sx, sy] = x.scale.map_or([1.0; 2], |scale| [1.0 / scale[2 * b], 1.0 / scale[2 * b + 1]]);
    let found = [x0 * sx, y0 * sy, x1 * sx, y1 * sy];
    let (w, h) = (found[2] - found[0], found[3] - found[1]);
    let large = rule.min_size_px < 0.0 || (w > rule.min_size_px && h > rule.min_size_px);
    large.then_some((found, p, class as i32))
}

/// Uses `e^-|x|`, which does not overflow and keeps the precision of the small side.
fn sigmoid(x: f32) -> f32 {
    let e = (-x.abs()).exp();
    if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
}
