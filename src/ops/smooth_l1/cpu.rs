//! CPU kernels of smooth L1.

use rayon::prelude::*;

use super::SmoothL1Bwd;

/// Rows of one parallel task: fixed, so that the sum does not depend on the number of threads.
const ROWS: usize = 256;

fn group(label: i32, k: usize) -> Option<usize> {
    usize::try_from(label).ok().filter(|&l| l < k)
}

/// Parallel tasks of `m` rows.
pub(super) fn chunks(m: usize) -> usize {
    m.div_ceil(ROWS)
}

/// `sums` has a slot for each of the [`chunks`].
pub(super) fn forward(loss: &mut [f32], sums: &mut [f64], a: &SmoothL1Bwd) {
    let (k, beta) = (a.k, f64::from(a.beta));
    let f = |(d, t): (&f32, &f32)| {
        let e = (f64::from(*d) - f64::from(*t)).abs();
        if e < beta { 0.5 * e * e / beta } else { e - 0.5 * beta }
    };
    let (deltas, targets, labels) = (a.deltas.f32s(), a.targets.f32s(), a.labels.i32s());
    let chunks = deltas.par_chunks(ROWS * 4 * k).zip(targets.par_chunks(ROWS * 4)).zip(labels.par_chunks(ROWS));
    sums.par_iter_mut().zip(chunks).for_each(|(sum, ((d, t), labels))| {
        let rows = d.chunks_exact(4 * k).zip(t.chunks_exact(4)).zip(labels);
        let each = rows.filter_map(|((d, t), &l)| Some(d[4 * group(l, k)?..][..4].iter().zip(t).map(f).sum::<f64>()));
        *sum = each.sum();
    });
    let total: f64 = sums.iter().sum();
    loss[0] = (f64::from(a.weight) * total / f64::from(a.avg.f32s()[0])) as f32;
}

pub(super) fn backward(dx: &mut [f32], dy: &[f32], a: &SmoothL1Bwd) {
    let (k, beta) = (a.k, a.beta);
    let scale = dy[0] * a.weight / a.avg.f32s()[0];
    let slope = |e: f32| {
        if e.abs() < beta {
            e / beta
        } else if e > 0.0 {
            1.0
        } else if e < 0.0 {
            -1.0
        } else {
            e // 0, or NaN
        }
    };
    let (deltas, targets, labels) = (a.deltas.f32s(), a.targets.f32s(), a.labels.i32s());
    let rows = dx.par_chunks_mut(ROWS * 4 * k).zip(deltas.par_chunks(ROWS * 4 * k));
    rows.zip(targets.par_chunks(ROWS * 4)).zip(labels.par_chunks(ROWS)).for_each(|(((dx, d), t), labels)| {
        dx.fill(0.0);
        let rows = dx.chunks_exact_mut(4 * k).zip(d.chunks_exact(4 * k)).zip(t.chunks_exact(4)).zip(labels);
        for (((dx, d), t), &label) in rows {
            let Some(g) = group(label, k) else { continue };
            for ((dx, d), t) in dx[4 * g..][..4].iter_mut().zip(&d[4 * g..][..4]).zip(t) {
                *dx = scale * slope(d - t);
            }
        }
    });
}
