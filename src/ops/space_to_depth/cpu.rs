//! CPU kernels of space-to-depth: one task a row of blocks, which is `k` rows of the map.

use rayon::prelude::*;

use super::BlockShape;
use crate::cpu::simd;

pub(super) fn forward(y: &mut [f32], x: &[f32], s: &BlockShape) {
    let ((oh, ow), run, row) = (s.blocks(), s.k * s.c, s.w * s.c);
    if y.is_empty() {
        return;
    }
    y.par_chunks_mut(ow * s.k * run).enumerate().for_each(|(i, y)| {
        let (n, first) = (i / oh, i % oh * s.k);
        for (kh, h) in (first..first + s.k).enumerate() {
            let x = if h < s.h { &x[(n * s.h + h) * row..][..row] } else { &[][..] };
            for (j, block) in y.chunks_exact_mut(s.k * run).enumerate() {
                let to = &mut block[kh * run..][..run];
                let x = x.get(j * run..).unwrap_or_default();
                let (inside, outside) = to.split_at_mut(run.min(x.len()));
                simd::copy(inside, &x[..inside.len()]);
                simd::zero(outside);
            }
        }
    });
}

pub(super) fn backward(dx: &mut [f32], dy: &[f32], s: &BlockShape) {
    let ((oh, ow), run, row) = (s.blocks(), s.k * s.c, s.w * s.c);
    if dx.is_empty() {
        return;
    }
    // Rows of blocks do not divide the rows of an image: one task a row of the map.
    dx.par_chunks_mut(row).enumerate().for_each(|(i, dx)| {
        let (n, h) = (i / s.h, i % s.h);
        let dy = &dy[(n * oh + h / s.k) * ow * s.k * run..][..ow * s.k * run];
        for (to, block) in dx.chunks_mut(run).zip(dy.chunks_exact(s.k * run)) {
            simd::copy(to, &block[h % s.k * run..][..to.len()]);
        }
    });
}
