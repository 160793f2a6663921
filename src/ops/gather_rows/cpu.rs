//! CPU kernels of the row gather.

use rayon::prelude::*;

use super::GatherShape;

/// Elements of one parallel task: 64 KiB.
const CHUNK: usize = 16 * 1024;

fn row(i: i32, n: usize) -> Option<usize> {
    usize::try_from(i).ok().filter(|&i| i < n)
}

pub(super) fn forward(y: &mut [f32], x: &[f32], idx: &[i32], s: &GatherShape) {
    if y.is_empty() {
        return;
    }
    let rows = (CHUNK / s.c).max(1);
    y.par_chunks_mut(rows * s.c).zip(idx.par_chunks(rows)).enumerate().for_each(|(chunk, (y, idx))| {
        for (j, (y, &i)) in y.chunks_exact_mut(s.c).zip(idx).enumerate() {
            let image = if s.shared { 0 } else { (chunk * rows + j) / s.s };
            match row(i, s.n) {
                Some(i) => y.copy_from_slice(&x[(image * s.n + i) * s.c..][..s.c]),
                None => y.fill(0.0),
            }
        }
    });
}

/// Zeros in fixed chunks, then one task per image: rows of one image may meet.
pub(super) fn backward(dx: &mut [f32], dy: &[f32], idx: &[i32], s: &GatherShape) {
    dx.par_chunks_mut(CHUNK).for_each(|dx| dx.fill(0.0));
    if dx.is_empty() || dy.is_empty() {
        return;
    }
    dx.par_chunks_mut(s.n * s.c).zip(dy.par_chunks(s.s * s.c)).zip(idx.par_chunks(s.s)).for_each(|((dx, dy), idx)| {
        for (dy, &i) in dy.chunks_exact(s.c).zip(idx) {
            let Some(i) = row(i, s.n) else { continue };
            for (dx, dy) in dx[i * s.c..][..s.c].iter_mut().zip(dy) {
                *dx += dy;
            }
        }
    });
}
