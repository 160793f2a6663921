//! CPU kernels of drop path: fixed chunks of each sample.

use rayon::prelude::*;

use super::Draw;
use crate::philox::{Purpose, Stream};
use crate::tensor::Tensor;
use crate::tensor::elementwise::CHUNK;

/// The branch's factor in sample `n`.
fn factor(key: &[i32], n: usize, draw: Draw) -> f32 {
    let stream = Stream::of_key(key, n as u32, Purpose::DropPath);
    if stream.block(draw.layer)[0] >> 8 < draw.drops { 0.0 } else { draw.scale }
}

pub(super) fn forward(y: &mut [f32], x: &[f32], branch: &[f32], samples: usize, drop: Option<(&Tensor, Draw)>) {
    let add = |y: &mut [f32], x: &[f32], branch: &[f32]| {
        y.iter_mut().zip(x).zip(branch).for_each(|((y, x), b)| *y = x + b);
    };
    let Some((key, draw)) = drop else {
        let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(branch.par_chunks(CHUNK));
        return chunks.for_each(|((y, x), branch)| add(y, x, branch));
    };
    for (n, len) in parts(y.len(), samples) {
        let (at, s) = (n * len..(n + 1) * len, factor(key.i32s(), n, draw));
        let chunks = y[at.clone()].par_chunks_mut(CHUNK).zip(x[at.clone()].par_chunks(CHUNK));
        chunks.zip(branch[at].par_chunks(CHUNK)).for_each(|((y, x), branch)| {
            if s == 0.0 {
                return y.copy_from_slice(x);
            }
            y.iter_mut().zip(x).zip(branch).for_each(|((y, x), &b)| *y = s.mul_add(b, *x));
        });
    }
}

pub(super) fn backward(dbranch: &mut [f32], dy: &[f32], samples: usize, key: &Tensor, draw: Draw) {
    for (n, len) in parts(dy.len(), samples) {
        let (at, s) = (n * len..(n + 1) * len, factor(key.i32s(), n, draw));
        dbranch[at.clone()].par_chunks_mut(CHUNK).zip(dy[at].par_chunks(CHUNK)).for_each(|(dbranch, dy)| {
            if s == 0.0 {
                return dbranch.fill(0.0);
            }
            dbranch.iter_mut().zip(dy).for_each(|(d, dy)| *d = s * dy);
        });
    }
}

/// Each sample, and the elements of one.
fn parts(elements: usize, samples: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..samples).map(move |n| (n, elements / samples))
}
