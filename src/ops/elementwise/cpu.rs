//! CPU loops, in fixed chunks on rayon threads; a single chunk stays on the caller's.

use rayon::prelude::*;

use super::CHUNK;

fn each(y: &mut [f32], x: &[f32], run: impl Fn((&mut [f32], &[f32])) + Sync + Send) {
    if y.len() <= CHUNK {
        return run((y, x));
    }
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(run);
}

pub(super) fn add_assign(y: &mut [f32], x: &[f32]) {
    each(y, x, |(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
}

pub(super) fn copy(y: &mut [f32], x: &[f32]) {
    each(y, x, |(y, x)| y.copy_from_slice(x));
}

pub(super) fn fill(y: &mut [f32], value: f32) {
    if y.len() <= CHUNK {
        return y.fill(value);
    }
    y.par_chunks_mut(CHUNK).for_each(|y| y.fill(value));
}

pub(super) fn scale(y: &mut [f32], factor: f32) {
    let run = |y: &mut [f32]| y.iter_mut().for_each(|y| *y *= factor);
    if y.len() <= CHUNK {
        return run(y);
    }
    y.par_chunks_mut(CHUNK).for_each(run);
}
