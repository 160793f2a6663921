//! CPU kernels of layer norm. They take a few rows at a time, so that the rows' sums do not wait for each other.
//! Column sums are taken over fixed chunks of rows and then folded in f64.

use rayon::prelude::*;

use crate::cpu::simd::{F32x16, LANES};

/// Rows worked on together.
const ROWS: usize = 4;
/// Target number of chunks of rows, and the bounds of a chunk: large enough that the partial sums are few compared with
/// the elements, small enough to balance the threads.
const CHUNKS: usize = 64;
const CHUNK_MAX: usize = 32 * 1024;
const CHUNK_MIN_ROWS: usize = 32;
/// Channels folded at a time.
const STRIP: usize = 32;

/// Rows of a chunk. They depend on the shape alone.
fn chunk_rows(m: usize, c: usize) -> usize {
    m.div_ceil(CHUNKS).min(CHUNK_MAX / c.max(1)).max(CHUNK_MIN_ROWS)
}

pub(super) fn chunks(m: usize, c: usize) -> usize {
    m.div_ceil(chunk_rows(m, c))
}

#[inline(always)]
fn sum(v: F32x16) -> f32 {
    let mut a = [0.0f32; LANES];
    v.store(&mut a);
    let b: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
    let c: [f32; 4] = std::array::from_fn(|i| b[i] + b[i + 4]);
    (c[0] + c[2]) + (c[1] + c[3])
}

/// Executes the block for each vector of a row of `c` elements: `n` elements from the `j`-th on. The block is compiled
/// twice, for whole vectors and for the rest; a closure would be compiled once for both.
macro_rules! over_row {
    ($c:expr; $j:ident, $n:ident => $body:block) => {{
        let (c, whole) = ($c, $c - $c % LANES);
        for $j in (0..whole).step_by(LANES) {
            let $n = LANES;
            $body
        }
        if whole < c {
            let ($j, $n) = (whole, c - whole);
            $body
        }
    }};
}

/// Loads `n` elements from the `j`-th on; the lanes after them are 0.
#[inline(always)]
fn load(x: &[f32], j: usize, n: usize) -> F32x16 {
    if n == LANES { F32x16::load(&x[j..]) } else { F32x16::load_partial(&x[j..j + n]) }
}

#[inline(always)]
fn store(v: F32x16, x: &mut [f32], j: usize, n: usize) {
    if n == LANES { v.store(&mut x[j..]) } else { v.store_partial(&mut x[j..j + n]) }
}

/// `v` in the first `n` lanes, 0 in the others.
#[inline(always)]
fn splat(v: f32, n: usize) -> F32x16 {
    if n == LANES { F32x16::splat(v) } else { F32x16::load_partial(&[v; LANES][..n]) }
}

/// `R` rows of `c` elements.
#[inline(always)]
fn rows_of<const R: usize>(x: &[f32], c: usize) -> [&[f32]; R] {
    std::array::from_fn(|r| &x[r * c..][..c])
}

pub(super) fn forward(y: &mut [f32], stats: &mut [f32], x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, c: usize) {
    if stats.is_empty() {
        return;
    }
    let m = stats.len() / 2;
    let (mean, rstd) = stats.split_at_mut(m);
    let n = chunk_rows(m, c);
    let rows = mean.par_chunks_mut(n).zip(rstd.par_chunks_mut(n));
    y.par_chunks_mut(n * c).zip(x.par_chunks(n * c)).zip(rows).for_each(|((y, x), (mean, rstd))| {
        let whole = mean.len() - mean.len() % ROWS;
        for i in (0..whole).step_by(ROWS) {
            let at = i * c..(i + ROWS) * c;
            forward_rows::<ROWS>(&mut y[at.clone()], &mut mean[i..], &mut rstd[i..], &x[at], gamma, beta, eps);
        }
        for i in whole..mean.len() {
            let at = i * c..(i + 1) * c;
            forward_rows::<1>(&mut y[at.clone()], &mut mean[i..], &mut rstd[i..], &x[at], gamma, beta, eps);
        }
    });
}

fn forward_rows<const R: usize>(
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
) {
    let c = gamma.len();
    let x = rows_of::<R>(x, c);
    let mut total = [F32x16::zero(); R];
    over_row!(c; j, n => {
        for r in 0..R {
            total[r] = total[r] + load(x[r], j, n);
        }
    });
    // The mean is rounded, so the deviations average `away`, not 0: adding `away` corrects the mean, and subtracting
    // its square corrects the variance.
    let near = total.map(|t| sum(t) / c as f32);
    let (mut dev, mut dev2) = ([F32x16::zero(); R], [F32x16::zero(); R]);
    over_row!(c; j, n => {
        for r in 0..R {
            let d = load(x[r], j, n) - splat(near[r], n);
            dev[r] = dev[r] + d;
            dev2[r] = d.mul_add(d, dev2[r]);
        }
    });
    for r in 0..R {
        let away = sum(dev[r]) / c as f32;
        let var = sum(dev2[r]) / c as f32 - away * away;
        let var = if var < 0.0 { 0.0 } else { var }; // NaN stays
        mean[r] = near[r] + away;
        rstd[r] = 1.0 / (var + eps).sqrt();
    }
    let (mean, rstd): ([_; R], [_; R]) =
        (std::array::from_fn(|r| F32x16::splat(mean[r])), std::array::from_fn(|r| F32x16::splat(rstd[r])));
    over_row!(c; j, n => {
        let (g, b) = (load(gamma, j, n), load(beta, j, n));
        for r in 0..R {
            let v = (load(x[r], j, n) - mean[r]) * rstd[r];
            store(v.mul_add(g, b), y, r * c + j, n);
        }
    });
}

/// Writes the gradient of x to `dx`, which holds dy at first if `dy` is None. Writes to `partial` (if it is not empty)
/// the sums of `dy * (x - mean) * rstd` and of `dy` over each chunk of rows.
pub(super) fn backward(
    dx: Option<&mut [f32]>,
    partial: &mut [f32],
    dy: Option<&[f32]>,
    x: &[f32],
    gamma: &[f32],
    stats: &[f32],
) {
    let (m, c) = (stats.len() / 2, gamma.len());
    if m == 0 {
        return;
    }
    let n = chunk_rows(m, c);
    // An output that is not wanted is replaced by one empty slice per chunk.
    let mut no_partial = vec![[0.0f32; 0]; chunks(m, c)];
    let mut no_dx = no_partial.clone();
    let partial: Vec<&mut [f32]> = match partial {
        [] => no_partial.iter_mut().map(|p| &mut p[..]).collect(),
        p => p.chunks_mut(2 * c).collect(),
    };
    let dx: Vec<&mut [f32]> = match dx {
        None => no_dx.iter_mut().map(|d| &mut d[..]).collect(),
        Some(dx) => dx.chunks_mut(n * c).collect(),
    };
    let run = match (dx[0].is_empty(), partial[0].is_empty()) {
        (true, true) => return,
        (true, false) => chunk::<false, true>,
        (false, true) => chunk::<true, false>,
        (false, false) => chunk::<true, true>,
    };
    let (mean, rstd) = stats.split_at(m);
    dx.into_par_iter().zip(partial).zip(x.par_chunks(n * c)).enumerate().for_each(|(i, ((dx, partial), x))| {
        let dy = dy.map(|dy| &dy[i * n * c..][..x.len()]);
        run(dx, partial, dy, x, gamma, &mean[i * n..], &rstd[i * n..]);
    });
}

fn chunk<const DX: bool, const PARTIAL: bool>(
    dx: &mut [f32],
    partial: &mut [f32],
    dy: Option<&[f32]>,
    x: &[f32],
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
) {
    partial.fill(0.0);
    let (c, rows) = (gamma.len(), x.len() / gamma.len());
    let mut one = |i: usize, r: usize| {
        let at = i * c..(i + r) * c;
        let dx = if DX { &mut dx[at.clone()] } else { &mut [][..] };
        if DX && let Some(dy) = dy {
            dx.copy_from_slice(&dy[at.clone()]);
        }
        let dy = dy.map(|dy| &dy[at.clone()]);
        let run = if r == ROWS { backward_rows::<ROWS, DX, PARTIAL> } else { backward_rows::<1, DX, PARTIAL> };
        run(dx, partial, dy, &x[at], gamma, &mean[i..], &rstd[i..]);
    };
    let whole = rows - rows % ROWS;
    (0..whole).step_by(ROWS).for_each(|i| one(i, ROWS));
    (whole..rows).for_each(|i| one(i, 1));
}

/// If `DX`, `dx` holds dy at first, and `dy` is not read.
fn backward_rows<const R: usize, const DX: bool, const PARTIAL: bool>(
    dx: &mut [f32],
    partial: &mut [f32],
    dy: Option<&[f32]>,
    x: &[f32],
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
) {
    let c = gamma.len();
    let x = rows_of::<R>(x, c);
    let (mean, rstd): ([_; R], [_; R]) =
        (std::array::from_fn(|r| F32x16::splat(mean[r])), std::array::from_fn(|r| F32x16::splat(rstd[r])));
    let normal = |r: usize, j: usize, n: usize| (load(x[r], j, n) - mean[r]) * rstd[r];
    let (mut total, mut along) = ([F32x16::zero(); R], [F32x16::zero(); R]);
    {
        let dy = rows_of::<R>(if DX { &*dx } else { dy.unwrap_or_default() }, c);
        let (dgamma, dbeta) = partial.split_at_mut(if PARTIAL { c } else { 0 });
        over_row!(c; j, n => {
            let g = load(gamma, j, n);
            let (mut a, mut b) = (F32x16::zero(), F32x16::zero());
            for r in 0..R {
                // After the end of a row dy is 0.
                let (d, v) = (load(dy[r], j, n), normal(r, j, n));
                if DX {
                    let dg = d * g;
                    total[r] = total[r] + dg;
                    along[r] = dg.mul_add(v, along[r]);
                }
                a = d.mul_add(v, a);
                b = b + d;
            }
            if PARTIAL {
                store(load(dgamma, j, n) + a, dgamma, j, n);
                store(load(dbeta, j, n) + b, dbeta, j, n);
            }
        });
    }
    if DX {
        let share = |t: F32x16| F32x16::splat(sum(t) / c as f32);
        let (total, along) = (total.map(share), along.map(share));
        over_row!(c; j, n => {
            let g = load(gamma, j, n);
            for r in 0..R {
                let at = r * c + j;
                let dg = load(dx, at, n) * g;
                store(((dg - total[r]) - normal(r, j, n) * along[r]) * rstd[r], dx, at, n);
            }
        });
    }
}

/// Sums the `[which,C]` parts of all chunks, in order, in f64, and writes the sum to `target` (or adds it if `add`).
pub(super) fn fold(target: &mut [f32], partial: &[f32], which: usize, add: bool) {
    let c = target.len();
    target.par_chunks_mut(STRIP).enumerate().for_each(|(i, target)| {
        let mut total = [0.0f64; STRIP];
        for p in partial.chunks_exact(2 * c) {
            let p = &p[which * c + i * STRIP..][..target.len()];
            total.iter_mut().zip(p).for_each(|(t, &p)| *t += f64::from(p));
        }
        for (t, total) in target.iter_mut().zip(total) {
            *t = if add { *t + total as f32 } else { total as f32 };
        }
    });
}
