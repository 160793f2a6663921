//! CPU kernels of binary cross-entropy.

use rayon::prelude::*;

/// Elements of one parallel task: fixed, so that the sum does not depend on the number of threads.
const CHUNK: usize = 4 * 1024;

/// Parallel tasks of `m` elements.
pub(super) fn chunks(m: usize) -> usize {
    m.div_ceil(CHUNK)
}

/// `sums` has a slot for each of the [`chunks`].
pub(super) fn forward(loss: &mut [f32], sums: &mut [f64], x: &[f32], target: &[i32], avg: &[f32], weight: f32) {
    let chunk_sum = |(x, target): (&[f32], &[i32])| -> f64 {
        let counted = x.iter().zip(target).filter(|(_, t)| matches!(t, 0 | 1));
        counted
            .map(|(&x, &t)| {
                let x = f64::from(x);
                // softplus(x) = ln(1 + e^x), written so that e^|x| never overflows.
                x.max(0.0) + (-x.abs()).exp().ln_1p() - f64::from(t) * x
            })
            .sum()
    };
    let tasks = sums.par_iter_mut().zip(x.par_chunks(CHUNK).zip(target.par_chunks(CHUNK)));
    tasks.for_each(|(sum, chunk)| *sum = chunk_sum(chunk));
    loss[0] = (f64::from(weight) * sums.iter().sum::<f64>() / f64::from(avg[0])) as f32;
}

pub(super) fn backward(dx: &mut [f32], dy: &[f32], x: &[f32], target: &[i32], avg: &[f32], weight: f32) {
    let scale = dy[0] * weight / avg[0];
    dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(target.par_chunks(CHUNK)).for_each(|((dx, x), target)| {
        for ((dx, &x), &t) in dx.iter_mut().zip(x).zip(target) {
            *dx = match t {
                0 => scale * sigmoid(x),
                1 => -scale * sigmoid(-x), // sigmoid(x) - 1 without the cancellation
                _ => 0.0,
            };
        }
    });
}

/// By `e^-|x|`, which neither overflows nor loses the small side.
fn sigmoid(x: f32) -> f32 {
    let e = (-x.abs()).exp();
    if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
}
