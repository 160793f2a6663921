//! CPU kernels of batch normalisation: loops over whole rows of lanes, sums in fixed chunks folded in f64.

use rayon::prelude::*;

/// A row of lanes holds at least this many elements, so that loops over few channels fill the vector unit too.
const MIN_WIDE: usize = 128;
/// Bounds of a chunk in elements: small enough that its second reading comes from the cache (128 KiB), large enough that
/// its partial sums are few; and how many chunks there should be.
const CHUNK: std::ops::RangeInclusive<usize> = 4 * 1024..=32 * 1024;
const CHUNKS: usize = 64;
/// Channels folded at a time.
const STRIP: usize = 32;

/// How the elements are walked. It depends on the shape alone, so results do not depend on the number of threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    /// Values a channel.
    pub m: usize,
    /// Channels.
    pub c: usize,
    /// Elements of a row of lanes: a whole number of pixels. Lane `j` holds channel `j % c`.
    pub wide: usize,
    /// Elements of a chunk: a whole number of rows of lanes.
    pub chunk: usize,
}

impl Split {
    pub fn new(m: usize, c: usize) -> Split {
        let wide = c.max(1) * MIN_WIDE.div_ceil(c.max(1));
        let chunk = (m * c / CHUNKS).clamp(*CHUNK.start(), *CHUNK.end()).next_multiple_of(wide);
        Split { m, c, wide, chunk }
    }

    pub fn chunks(&self) -> usize {
        (self.m * self.c).div_ceil(self.chunk)
    }

    fn chunk_len(&self, i: usize) -> usize {
        self.chunk.min(self.m * self.c - i * self.chunk)
    }
}

/// `f(element of a, lane)` is too slow as a closure a lane; loops below are written out over equal slices instead.
fn lanes<const K: usize>(coef: &[f32], wide: usize, n: usize) -> [&[f32]; K] {
    std::array::from_fn(|k| &coef[k * wide..][..n])
}

/// Mean and `1 / sqrt(var + eps)` of the batch into `stats`, and the running statistics' move.
///
/// Each chunk takes its mean, then (from the cache) the sums of deviations and of their squares from it; the chunks meet
/// in f64. So a large mean does not cancel, and x is read from memory once.
pub(super) fn batch_stats(
    stats: &mut [f32],
    running_mean: &mut [f32],
    running_var: &mut [f32],
    partial: &mut [f32],
    x: &[f32],
    momentum: f32,
    eps: f32,
    s: &Split,
) {
    if s.m * s.c == 0 {
        stats.fill(0.0);
        return;
    }
    partial.par_chunks_mut(3 * s.wide).zip(x.par_chunks(s.chunk)).for_each(|(p, x)| chunk_stats(p, x, s.wide));
    let (mean, rstd) = stats.split_at_mut(s.c);
    let partial = &*partial;
    mean.par_chunks_mut(STRIP)
        .zip(rstd.par_chunks_mut(STRIP))
        .zip(running_mean.par_chunks_mut(STRIP))
        .zip(running_var.par_chunks_mut(STRIP))
        .enumerate()
        .for_each(|(i, (((mean, rstd), running_mean), running_var))| {
            let (sum, m2) = fold_stats(partial, i * STRIP, mean.len(), s);
            let m = s.m as f64;
            let move_to = |old: f32, new: f64| (f64::from(old) + f64::from(momentum) * (new - f64::from(old))) as f32;
            for j in 0..mean.len() {
                let batch_mean = sum[j] / m;
                mean[j] = batch_mean as f32;
                rstd[j] = (1.0 / (m2[j] / m + f64::from(eps)).sqrt()) as f32;
                running_mean[j] = move_to(running_mean[j], batch_mean);
                running_var[j] = move_to(running_var[j], m2[j] / (m - 1.0));
            }
        });
}

fn chunk_stats(p: &mut [f32], x: &[f32], wide: usize) {
    let (mean, rest) = p.split_at_mut(wide);
    let (dev, dev2) = rest.split_at_mut(wide);
    mean.fill(0.0);
    let four = x.chunks_exact(4 * wide);
    for row in four.remainder().chunks(wide) {
        for (a, x) in mean.iter_mut().zip(row) {
            *a += x;
        }
    }
    for rows in four {
        let [x0, x1, x2, x3]: [&[f32]; 4] = lanes(rows, wide, wide);
        for i in 0..wide {
            mean[i] += (x0[i] + x1[i]) + (x2[i] + x3[i]);
        }
    }
    for (j, a) in mean.iter_mut().enumerate() {
        *a /= count(x.len(), j, wide).max(1) as f32;
    }
    dev.fill(0.0);
    dev2.fill(0.0);
    let two = x.chunks_exact(2 * wide);
    for row in two.remainder().chunks(wide) {
        let n = row.len();
        let (mean, dev, dev2) = (&mean[..n], &mut dev[..n], &mut dev2[..n]);
        for i in 0..n {
            let d = row[i] - mean[i];
            dev[i] += d;
            dev2[i] += d * d;
        }
    }
    for rows in two {
        let [x0, x1]: [&[f32]; 2] = lanes(rows, wide, wide);
        let (mean, dev, dev2) = (&mean[..wide], &mut dev[..wide], &mut dev2[..wide]);
        for i in 0..wide {
            let (d0, d1) = (x0[i] - mean[i], x1[i] - mean[i]);
            dev[i] += d0 + d1;
            dev2[i] += d0 * d0 + d1 * d1;
        }
    }
}

/// Elements of lane `j` in a chunk of `len`.
fn count(len: usize, j: usize, wide: usize) -> usize {
    len.saturating_sub(j).div_ceil(wide)
}

/// Sum and squared deviations from the mean, of `n` channels from `c0`.
fn fold_stats(partial: &[f32], c0: usize, n: usize, s: &Split) -> ([f64; STRIP], [f64; STRIP]) {
    let (mut sum, mut m2) = ([0.0; STRIP], [0.0; STRIP]);
    let each = |f: &mut dyn FnMut(usize, f64, f64, f64, f64)| {
        for (i, p) in partial.chunks(3 * s.wide).enumerate() {
            let len = s.chunk_len(i);
            for pixel in 0..s.wide / s.c {
                for j in 0..n {
                    let lane = pixel * s.c + c0 + j;
                    let count = count(len, lane, s.wide) as f64;
                    f(j, count, p[lane].into(), p[s.wide + lane].into(), p[2 * s.wide + lane].into());
                }
            }
        }
    };
    each(&mut |j, count, mean, dev, _| sum[j] += count * mean + dev);
    // Σ (x - mu)² = Σ ((x - mean) - off)² with off = mu - mean.
    each(&mut |j, count, mean, dev, dev2| {
        let off = sum[j] / s.m as f64 - mean;
        m2[j] += dev2 - 2.0 * off * dev + count * off * off;
    });
    (sum, m2.map(|v: f64| v.max(0.0)))
}

/// The running statistics as mean and `1 / sqrt(var + eps)`.
pub(super) fn running_stats(stats: &mut [f32], mean: &[f32], var: &[f32], eps: f32) {
    let (out_mean, rstd) = stats.split_at_mut(mean.len());
    out_mean.copy_from_slice(mean);
    for (r, &v) in rstd.iter_mut().zip(var) {
        *r = (1.0 / (f64::from(v) + f64::from(eps)).sqrt()) as f32;
    }
}

/// Lanes of mean, scale, shift: `y = (x - mean) * scale + shift`. Subtracting first keeps the digits of a large mean.
pub(super) fn forward_coef(coef: &mut [f32], stats: &[f32], gamma: &[f32], beta: &[f32], s: &Split) {
    let (mean, rstd) = stats.split_at(s.c);
    fill_lanes(coef, s, |c| [mean[c], rstd[c] * gamma[c], beta[c]]);
}

fn fill_lanes<const K: usize>(coef: &mut [f32], s: &Split, of: impl Fn(usize) -> [f32; K]) {
    for lane in 0..if s.c == 0 { 0 } else { s.wide } {
        for (k, v) in of(lane % s.c).into_iter().enumerate() {
            coef[k * s.wide + lane] = v;
        }
    }
}

pub(super) fn forward(y: &mut [f32], x: &[f32], residual: Option<&[f32]>, relu: bool, coef: &[f32], s: &Split) {
    let run = match (residual, relu) {
        (None, false) => forward_chunk::<false, false>,
        (None, true) => forward_chunk::<false, true>,
        (Some(_), false) => forward_chunk::<true, false>,
        (Some(_), true) => forward_chunk::<true, true>,
    };
    y.par_chunks_mut(s.chunk).enumerate().for_each(|(i, y)| {
        let (at, n) = (i * s.chunk, y.len());
        let x = &x[at..][..n];
        run(y, x, residual.map_or(x, |r| &r[at..][..n]), coef, s.wide);
    });
}

/// `max(0, v)` that lets NaN through.
#[inline(always)]
fn rectify<const RELU: bool>(v: f32) -> f32 {
    if RELU && v < 0.0 { 0.0 } else { v }
}

/// The gradient behind the ReLU: `dy` where `y` is not clamped.
#[inline(always)]
fn mask<const RELU: bool>(dy: f32, y: f32) -> f32 {
    if RELU && y <= 0.0 { 0.0 } else { dy }
}

fn forward_chunk<const RESIDUAL: bool, const RELU: bool>(
    y: &mut [f32],
    x: &[f32],
    residual: &[f32],
    coef: &[f32],
    wide: usize,
) {
    for ((y, x), r) in y.chunks_mut(wide).zip(x.chunks(wide)).zip(residual.chunks(wide)) {
        let n = y.len();
        let ([mean, scale, shift], x, r) = (lanes(coef, wide, n), &x[..n], &r[..n]);
        for i in 0..n {
            let v = (x[i] - mean[i]).mul_add(scale[i], shift[i]);
            y[i] = rectify::<RELU>(if RESIDUAL { v + r[i] } else { v });
        }
    }
}

/// Partial sums over each chunk of `g * (x - mean) * rstd` and of `g`, where `g` is `dy` behind the ReLU.
/// `coef` is scratch for lanes of the mean and of rstd.
pub(super) fn reduce(
    partial: &mut [f32],
    dy: &[f32],
    x: &[f32],
    y: Option<&[f32]>,
    stats: &[f32],
    coef: &mut [f32],
    s: &Split,
) {
    let (mean, rstd) = stats.split_at(s.c);
    fill_lanes(coef, s, |c| [mean[c], rstd[c]]);
    let run = if y.is_some() { reduce_chunk::<true> } else { reduce_chunk::<false> };
    let coef = &*coef;
    partial.par_chunks_mut(2 * s.wide).enumerate().for_each(|(i, p)| {
        let (at, n) = (i * s.chunk, s.chunk_len(i));
        run(p, &dy[at..][..n], &x[at..][..n], &y.unwrap_or(x)[at..][..n], coef, s.wide);
    });
}

fn reduce_chunk<const RELU: bool>(p: &mut [f32], dy: &[f32], x: &[f32], y: &[f32], coef: &[f32], wide: usize) {
    p.fill(0.0);
    let (dgamma, dbeta) = p.split_at_mut(wide);
    for ((dy, x), y) in dy.chunks(wide).zip(x.chunks(wide)).zip(y.chunks(wide)) {
        let n = dy.len();
        let ([mean, rstd], x, y) = (lanes(coef, wide, n), &x[..n], &y[..n]);
        let (dgamma, dbeta) = (&mut dgamma[..n], &mut dbeta[..n]);
        for i in 0..n {
            let g = mask::<RELU>(dy[i], y[i]);
            dgamma[i] += g * ((x[i] - mean[i]) * rstd[i]);
            dbeta[i] += g;
        }
    }
}

/// Sums of the chunks' two partial sums, in order, in f64.
pub(super) fn fold(sums: &mut [f32], partial: &[f32], s: &Split) {
    let (dgamma, dbeta) = sums.split_at_mut(s.c);
    dgamma.par_chunks_mut(STRIP).zip(dbeta.par_chunks_mut(STRIP)).enumerate().for_each(|(i, (dgamma, dbeta))| {
        let (mut a, mut b) = ([0.0f64; STRIP], [0.0f64; STRIP]);
        for p in partial.chunks(2 * s.wide) {
            for pixel in 0..s.wide / s.c {
                let lane = pixel * s.c + i * STRIP;
                for j in 0..dgamma.len() {
                    a[j] += f64::from(p[lane + j]);
                    b[j] += f64::from(p[s.wide + lane + j]);
                }
            }
        }
        for j in 0..dgamma.len() {
            (dgamma[j], dbeta[j]) = (a[j] as f32, b[j] as f32);
        }
    });
}

/// `target = sum`, or `+=`.
pub(super) fn put(target: &mut [f32], sum: &[f32], add: bool) {
    for (t, s) in target.iter_mut().zip(sum) {
        *t = if add { *t + s } else { *s };
    }
}

/// Lanes of mean, a, b, d: `dx = a g + (b (x - mean) + d)`; without `sums` (frozen) b and d are 0.
pub(super) fn backward_coef(coef: &mut [f32], stats: &[f32], gamma: &[f32], sums: Option<&[f32]>, s: &Split) {
    let (mean, rstd) = stats.split_at(s.c);
    fill_lanes(coef, s, |c| {
        let a = gamma[c] * rstd[c];
        match sums {
            None => [mean[c], a, 0.0, 0.0],
            Some(sums) => {
                let (dgamma, dbeta) = (sums[c] / s.m as f32, sums[s.c + c] / s.m as f32);
                [mean[c], a, -a * rstd[c] * dgamma, -a * dbeta]
            }
        }
    });
}

/// `dx`, holding `dy` or to be filled from it, becomes the gradient of x.
pub(super) fn backward_train(
    dx: &mut [f32],
    dy: Option<&[f32]>,
    x: &[f32],
    y: Option<&[f32]>,
    coef: &[f32],
    s: &Split,
) {
    let run = if y.is_some() { train_chunk::<true> } else { train_chunk::<false> };
    dx.par_chunks_mut(s.chunk).enumerate().for_each(|(i, dx)| {
        let (at, n) = (i * s.chunk, dx.len());
        fill_from(dx, dy, at);
        run(dx, &x[at..][..n], &y.unwrap_or(x)[at..][..n], coef, s.wide);
    });
}

fn fill_from(target: &mut [f32], source: Option<&[f32]>, at: usize) {
    if let Some(source) = source {
        target.copy_from_slice(&source[at..][..target.len()]);
    }
}

fn train_chunk<const RELU: bool>(dx: &mut [f32], x: &[f32], y: &[f32], coef: &[f32], wide: usize) {
    for ((dx, x), y) in dx.chunks_mut(wide).zip(x.chunks(wide)).zip(y.chunks(wide)) {
        let n = dx.len();
        let ([mean, a, b, d], x, y) = (lanes(coef, wide, n), &x[..n], &y[..n]);
        for i in 0..n {
            let g = mask::<RELU>(dx[i], y[i]);
            dx[i] = a[i].mul_add(g, b[i].mul_add(x[i] - mean[i], d[i]));
        }
    }
}

/// `dresidual`, holding `dy` or to be filled from it, becomes the gradient behind the ReLU; `dx`, holding x or to be
/// filled from it, the gradient of x.
pub(super) fn backward_train_residual(
    dresidual: &mut [f32],
    dy: Option<&[f32]>,
    dx: &mut [f32],
    x: Option<&[f32]>,
    y: Option<&[f32]>,
    coef: &[f32],
    s: &Split,
) {
    dresidual.par_chunks_mut(s.chunk).zip(dx.par_chunks_mut(s.chunk)).enumerate().for_each(|(i, (dr, dx))| {
        let at = i * s.chunk;
        fill_from(dr, dy, at);
        fill_from(dx, x, at);
        mask_chunk(dr, y.map(|y| &y[at..]));
        for (dx, g) in dx.chunks_mut(s.wide).zip(dr.chunks(s.wide)) {
            let n = dx.len();
            let ([mean, a, b, d], g) = (lanes(coef, s.wide, n), &g[..n]);
            for i in 0..n {
                dx[i] = a[i].mul_add(g[i], b[i].mul_add(dx[i] - mean[i], d[i]));
            }
        }
    });
}

fn mask_chunk(g: &mut [f32], y: Option<&[f32]>) {
    if let Some(y) = y {
        for (g, y) in g.iter_mut().zip(y) {
            *g = mask::<true>(*g, *y);
        }
    }
}

/// As [`backward_train`] where the statistics do not depend on x.
pub(super) fn backward_frozen(dx: &mut [f32], dy: Option<&[f32]>, y: Option<&[f32]>, coef: &[f32], s: &Split) {
    dx.par_chunks_mut(s.chunk).enumerate().for_each(|(i, dx)| {
        let at = i * s.chunk;
        fill_from(dx, dy, at);
        let y = y.map(|y| &y[at..][..dx.len()]);
        for (r, dx) in dx.chunks_mut(s.wide).enumerate() {
            mask_chunk(dx, y.map(|y| &y[r * s.wide..]));
            for (dx, a) in dx.iter_mut().zip(&coef[s.wide..]) {
                *dx *= a;
            }
        }
    });
}

/// As [`backward_train_residual`] where the statistics do not depend on x; `dx` is fresh.
pub(super) fn backward_frozen_residual(
    dresidual: &mut [f32],
    dy: Option<&[f32]>,
    dx: Option<&mut [f32]>,
    y: Option<&[f32]>,
    coef: &[f32],
    s: &Split,
) {
    dresidual.par_chunks_mut(s.chunk).enumerate().for_each(|(i, dr)| {
        fill_from(dr, dy, i * s.chunk);
        mask_chunk(dr, y.map(|y| &y[i * s.chunk..]));
    });
    let Some(dx) = dx else { return };
    let g = &*dresidual;
    dx.par_chunks_mut(s.chunk).zip(g.par_chunks(s.chunk)).for_each(|(dx, g)| {
        for (dx, g) in dx.chunks_mut(s.wide).zip(g.chunks(s.wide)) {
            for ((dx, g), a) in dx.iter_mut().zip(g).zip(&coef[s.wide..]) {
                *dx = g * a;
            }
        }
    });
}
