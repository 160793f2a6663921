//! CPU kernels of softmax cross-entropy.

use rayon::prelude::*;

/// Elements of one parallel task: fixed, so that the sum does not depend on the number of threads.
const CHUNK: usize = 4 * 1024;

fn class(label: i32, c: usize) -> Option<usize> {
    usize::try_from(label).ok().filter(|&l| l < c)
}

fn max(x: &[f32]) -> f32 {
    x.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Rows of one parallel task.
fn rows_of_task(c: usize) -> usize {
    (CHUNK / c).max(1)
}

/// Parallel tasks of `m` rows.
pub(super) fn chunks(m: usize, c: usize) -> usize {
    m.div_ceil(rows_of_task(c))
}

/// `sums` has a slot for each of the [`chunks`].
pub(super) fn forward(
    loss: &mut [f32],
    sums: &mut [f64],
    x: &[f32],
    labels: &[i32],
    avg: &[f32],
    c: usize,
    weight: f32,
) {
    let row_loss = |x: &[f32], label: i32| -> f64 {
        let Some(label) = class(label, c) else { return 0.0 };
        let max = max(x);
        let sum: f64 = x.iter().map(|x| f64::from((x - max).exp())).sum();
        sum.ln() + f64::from(max) - f64::from(x[label])
    };
    let rows = rows_of_task(c);
    let tasks = sums.par_iter_mut().zip(x.par_chunks(rows * c).zip(labels.par_chunks(rows)));
    tasks.for_each(|(sum, (x, labels))| {
        *sum = x.chunks_exact(c).zip(labels).map(|(x, &label)| row_loss(x, label)).sum();
    });
    let total: f64 = sums.iter().sum();
    loss[0] = (f64::from(weight) * total / f64::from(avg[0])) as f32;
}

pub(super) fn backward(dx: &mut [f32], dy: &[f32], x: &[f32], labels: &[i32], avg: &[f32], c: usize, weight: f32) {
    let scale = dy[0] * weight / avg[0];
    let rows = rows_of_task(c);
    let chunks = dx.par_chunks_mut(rows * c).zip(x.par_chunks(rows * c)).zip(labels.par_chunks(rows));
    chunks.for_each(|((dx, x), labels)| {
        for ((dx, x), &label) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(labels) {
            let Some(label) = class(label, c) else {
                dx.fill(0.0);
                continue;
            };
            let max = max(x);
            let (mut sum, mut others) = (0.0, 0.0);
            for (i, (dx, x)) in dx.iter_mut().zip(x).enumerate() {
                *dx = (x - max).exp();
                sum += *dx;
                others += if i == label { 0.0 } else { *dx };
            }
            for dx in dx.iter_mut() {
                *dx *= scale / sum;
            }
            dx[label] = -scale * (others / sum); // p - 1 without the cancellation
        }
    });
}
