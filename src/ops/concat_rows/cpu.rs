//! CPU kernels of concat_rows: one task per image.

use rayon::prelude::*;

/// Writes each image's `len` elements of `x` at `at` of the image's `stride` elements of `y`.
pub(super) fn put(y: &mut [f32], x: &[f32], stride: usize, at: usize, len: usize) {
    if len == 0 {
        return;
    }
    y.par_chunks_mut(stride).zip(x.par_chunks(len)).for_each(|(y, x)| y[at..at + len].copy_from_slice(x));
}

/// The reverse: each image's `len` elements at `at` of `dy`, as `dx`.
pub(super) fn take(dx: &mut [f32], dy: &[f32], stride: usize, at: usize, len: usize) {
    if len == 0 {
        return;
    }
    dx.par_chunks_mut(len).zip(dy.par_chunks(stride)).for_each(|(dx, dy)| dx.copy_from_slice(&dy[at..at + len]));
}
