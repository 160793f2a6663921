//! CPU kernels of box decoding.

use rayon::prelude::*;

/// Sizes of one decoding: `b` images, `k` of `n` rows each; `shared` if one `[N,4]` of anchors serves all images.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeShape {
    pub(super) b: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) shared: bool,
}

/// Boxes of one parallel task.
const CHUNK: usize = 1024;

/// |ln(16/1000)|: a predicted side is at most 62.5 times the anchor's, and at least 1/62.5 of it.
const LOG_SCALE_MAX: f32 = 4.135_166_6;

/// NaN stays NaN: neither comparison holds.
fn clamp(v: f32, lo: f32, hi: f32) -> f32 {
    if v < lo {
        lo
    } else if v > hi {
        hi
    } else {
        v
    }
}

/// (width, height) of image `b` out of `sizes [B,4]` (img_h, img_w, pad_h, pad_w).
pub(in crate::ops) fn image_size(sizes: &[f32], b: usize) -> (f32, f32) {
    (sizes[4 * b + 1], sizes[4 * b])
}

/// One box: anchor `p` moved by `d`, clipped to `[0, w] x [0, h]`. In mmdetection's order of operations.
pub(in crate::ops) fn decode(p: &[f32], d: &[f32], stds: &[f32; 4], (w, h): (f32, f32)) -> [f32; 4] {
    let axis = |lo: f32, hi: f32, shift: f32, log_scale: f32, limit: f32| {
        let side = hi - lo;
        let centre = (lo + hi) * 0.5 + side * shift;
        let half = side * clamp(log_scale, -LOG_SCALE_MAX, LOG_SCALE_MAX).exp() * 0.5;
        (clamp(centre - half, 0.0, limit), clamp(centre + half, 0.0, limit))
    };
    let (x0, x1) = axis(p[0], p[2], d[0] * stds[0], d[2] * stds[2], w);
    let (y0, y1) = axis(p[1], p[3], d[1] * stds[1], d[3] * stds[3], h);
    [x0, y0, x1, y1]
}

pub(super) fn forward(
    y: &mut [f32],
    anchors: &[f32],
    deltas: &[f32],
    idx: Option<&[i32]>,
    sizes: &[f32],
    stds: [f32; 4],
    s: &DecodeShape,
) {
    y.par_chunks_mut(4 * CHUNK).enumerate().for_each(|(chunk, y)| {
        for (j, y) in y.chunks_exact_mut(4).enumerate() {
            let r = chunk * CHUNK + j;
            let (b, k) = (r / s.k, r % s.k);
            let i = match idx {
                None => Some(k),
                Some(idx) => usize::try_from(idx[r]).ok().filter(|&i| i < s.n),
            };
            let Some(i) = i else {
                y.fill(0.0);
                continue;
            };
            let own = b * s.n + i;
            let anchor = if s.shared { i } else { own };
            y.copy_from_slice(&decode(
                &anchors[4 * anchor..][..4],
                &deltas[4 * own..][..4],
                &stds,
                image_size(sizes, b),
            ));
        }
    });
}
