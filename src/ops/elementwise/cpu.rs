//! CPU loops, in fixed chunks on rayon threads.

use rayon::prelude::*;

/// Elements of one parallel task: 64 KiB of f32, half of a second-level cache way.
const CHUNK: usize = 16 * 1024;

pub(super) fn add_assign(y: &mut [f32], x: &[f32]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    });
}

pub(super) fn copy(y: &mut [f32], x: &[f32]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| y.copy_from_slice(x));
}
