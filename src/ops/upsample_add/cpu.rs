//! CPU kernels of upsample-add: one task per row of the output, and per row of the top in the backward pass.

use rayon::prelude::*;

use super::UpsampleShape;

/// First cell of `0..to` whose source among `0..from` is `i` or later.
fn first(i: usize, from: usize, to: usize) -> usize {
    (i * to).div_ceil(from)
}

pub(super) fn forward(y: &mut [f32], top: &[f32], lateral: &[f32], s: &UpsampleShape) {
    let (row, row_top) = (s.w * s.c, s.wt * s.c);
    if row == 0 || y.is_empty() {
        return;
    }
    y.par_chunks_mut(row).zip(lateral.par_chunks(row)).enumerate().for_each(|(i, (y, lateral))| {
        let (n, h) = (i / s.h, i % s.h);
        let top = &top[(n * s.ht + h * s.ht / s.h) * row_top..][..row_top];
        for (wt, top) in top.chunks_exact(s.c).enumerate() {
            let cells = first(wt, s.wt, s.w) * s.c..first(wt + 1, s.wt, s.w) * s.c;
            for (y, lateral) in y[cells.clone()].chunks_exact_mut(s.c).zip(lateral[cells].chunks_exact(s.c)) {
                for ((y, l), t) in y.iter_mut().zip(lateral).zip(top) {
                    *y = l + t;
                }
            }
        }
    });
}

pub(super) fn backward(dtop: &mut [f32], dy: &[f32], s: &UpsampleShape) {
    let (row, row_top) = (s.w * s.c, s.wt * s.c);
    dtop.fill(0.0);
    if row_top == 0 || dy.is_empty() {
        return;
    }
    dtop.par_chunks_mut(row_top).enumerate().for_each(|(i, dtop)| {
        let (n, ht) = (i / s.ht, i % s.ht);
        for h in first(ht, s.ht, s.h)..first(ht + 1, s.ht, s.h) {
            let dy = &dy[(n * s.h + h) * row..][..row];
            for (wt, dtop) in dtop.chunks_exact_mut(s.c).enumerate() {
                let cells = first(wt, s.wt, s.w) * s.c..first(wt + 1, s.wt, s.w) * s.c;
                for dy in dy[cells].chunks_exact(s.c) {
                    for (t, y) in dtop.iter_mut().zip(dy) {
                        *t += y;
                    }
                }
            }
        }
    });
}
