//! CPU kernels of the selected output layer.

use rayon::prelude::*;

use super::Shape;

/// Channels summed in registers at once.
const CHANNELS: usize = 64;
/// Rows of a task.
const ROWS: usize = 128;

/// The label, if it is a class.
fn class(label: i32, s: &Shape) -> Option<usize> {
    usize::try_from(label).ok().filter(|&k| k < s.k)
}

/// One rounding where the machine has the instruction; the library call that replaces it elsewhere is far too slow.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_feature = "fma") { a.mul_add(b, c) } else { a * b + c }
}

fn dot(x: &[f32], w: &[f32]) -> f32 {
    let mut acc = [0f32; CHANNELS];
    let (xs, ws) = (x.chunks_exact(CHANNELS), w.chunks_exact(CHANNELS));
    let rest = xs.remainder().iter().zip(ws.remainder());
    acc.iter_mut().zip(rest).for_each(|(a, (&x, &w))| *a = x * w);
    for (x, w) in xs.zip(ws) {
        (0..CHANNELS).for_each(|k| acc[k] = fma(x[k], w[k], acc[k]));
    }
    let mut n = CHANNELS;
    while n > 1 {
        n /= 2;
        (0..n).for_each(|k| acc[k] += acc[k + n]);
    }
    acc[0]
}

pub(super) fn forward(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], label: &[i32], s: &Shape) {
    if s.m == 0 {
        return;
    }
    y.par_chunks_mut(s.m).zip(label).enumerate().for_each(|(r, (y, &label))| {
        let Some(k) = class(label, s) else { return y.fill(0.0) };
        let (w, b) = (&w[k * s.c..][..s.c], b[k]);
        y.par_chunks_mut(ROWS).enumerate().for_each(|(task, y)| {
            for (i, y) in y.iter_mut().enumerate() {
                *y = dot(&x[(r * s.m + task * ROWS + i) * s.c..][..s.c], w) + b;
            }
        });
    });
}

pub(super) fn backward_data(dx: &mut [f32], dy: &[f32], w: &[f32], label: &[i32], s: &Shape) {
    if dx.is_empty() {
        return;
    }
    dx.par_chunks_mut(s.m * s.c).zip(dy.par_chunks(s.m)).zip(label).for_each(|((dx, dy), &label)| {
        let Some(k) = class(label, s) else { return dx.fill(0.0) };
        let w = &w[k * s.c..][..s.c];
        dx.par_chunks_mut(ROWS * s.c).zip(dy.par_chunks(ROWS)).for_each(|(dx, dy)| {
            for (dx, &dy) in dx.chunks_exact_mut(s.c).zip(dy) {
                dx.iter_mut().zip(w).for_each(|(dx, &w)| *dx = dy * w);
            }
        });
    });
}

/// `w_sums [R·chunks,C]`: sums of `dy x` over the rows of each chunk, `b_sums [R·chunks]`: of dy. Those without a class
/// stay unset.
pub(super) fn partial_sums(w_sums: &mut [f32], b_sums: &mut [f32], dy: &[f32], x: &[f32], label: &[i32], s: &Shape) {
    let (chunks, step) = (s.chunks(), s.rows_per_chunk());
    b_sums.par_iter_mut().enumerate().filter(|(i, _)| class(label[i / chunks], s).is_some()).for_each(|(i, sum)| {
        *sum = rows(i, chunks, step, s).map(|row| dy[row]).sum();
    });
    if s.c == 0 {
        return;
    }
    w_sums.par_chunks_mut(s.c).enumerate().filter(|(i, _)| class(label[i / chunks], s).is_some()).for_each(
        |(i, sums)| {
            let mut at = 0;
            let mut blocks = sums.chunks_exact_mut(CHANNELS);
            for sums in &mut blocks {
                let mut acc = [0f32; CHANNELS];
                for row in rows(i, chunks, step, s) {
                    let (dy, x) = (dy[row], &x[row * s.c + at..][..CHANNELS]);
                    (0..CHANNELS).for_each(|k| acc[k] = fma(dy, x[k], acc[k]));
                }
                sums.copy_from_slice(&acc);
                at += CHANNELS;
            }
            let rest = blocks.into_remainder();
            rest.fill(0.0);
            for row in rows(i, chunks, step, s) {
                let (dy, x) = (dy[row], &x[row * s.c + at..][..rest.len()]);
                rest.iter_mut().zip(x).for_each(|(sum, &x)| *sum = fma(dy, x, *sum));
            }
        },
    );
}

/// Rows of partial sum `i`, of all R·M.
fn rows(i: usize, chunks: usize, step: usize, s: &Shape) -> std::ops::Range<usize> {
    let (r, first) = (i / chunks, i % chunks * step);
    r * s.m + first..r * s.m + (first + step).min(s.m).max(first)
}

/// `d[k,:] (+)=` the partial sums of those with label k, in order and in f64.
pub(super) fn fold(d: &mut [f32], accumulate: bool, sums: &[f32], label: &[i32], s: &Shape) {
    let (chunks, columns) = (s.chunks(), d.len().checked_div(s.k).unwrap_or(0));
    if columns == 0 {
        return;
    }
    d.par_chunks_mut(columns).enumerate().for_each(|(k, d)| {
        for (block, d) in d.chunks_mut(CHANNELS).enumerate() {
            let mut acc = [0f64; CHANNELS];
            for (r, _) in label.iter().enumerate().filter(|&(_, &l)| class(l, s) == Some(k)) {
                for i in r * chunks..(r + 1) * chunks {
                    let sums = &sums[i * columns + block * CHANNELS..][..d.len()];
                    acc.iter_mut().zip(sums).for_each(|(a, &v)| *a += f64::from(v));
                }
            }
            d.iter_mut()
                .zip(acc)
                .for_each(|(d, a)| *d = if accumulate { (f64::from(*d) + a) as f32 } else { a as f32 });
        }
    });
}
