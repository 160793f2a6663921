//! CPU kernels of batch norm. Loops go over whole rows of lanes; sums are taken over fixed chunks and folded in f64.

use rayon::prelude::*;

/// A row of lanes holds at least `MIN_WIDE` elements, and whole vectors if that is possible within `MAX_WIDE`. So loops
/// over few channels, or an odd number of them, fill the vector unit too.
const MIN_WIDE: usize = 128;
const MAX_WIDE: usize = 2048;
const VECTOR: usize = 32;
/// Target number of chunks, and the bounds of a chunk: small enough that a second read hits the cache (32 Ki elements,
/// 128 KiB), and with enough rows of lanes that the partial sums are few compared with the elements.
const CHUNKS: usize = 64;
const CHUNK_MAX: usize = 32 * 1024;
const CHUNK_MIN_ROWS: usize = 32;
/// Channels folded at a time.
const STRIP: usize = 32;

/// The division of the elements into chunks and rows. It depends on the shape alone, so results do not depend on the
/// number of threads.
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
        let c1 = c.max(1);
        let wide = (1..=MIN_WIDE).map(|k| k * c1).find(|w| *w >= MIN_WIDE && w.is_multiple_of(VECTOR));
        let wide = wide.filter(|w| *w <= MAX_WIDE).unwrap_or(c1 * MIN_WIDE.div_ceil(c1));
        let chunk = (m * c / CHUNKS).min(CHUNK_MAX).max(CHUNK_MIN_ROWS * wide).next_multiple_of(wide);
        Split { m, c, wide, chunk }
    }

    /// Values a channel, and channels.
    pub fn size(&self) -> [usize; 2] {
        [self.m, self.c]
    }

    pub fn chunks(&self) -> usize {
        (self.m * self.c).div_ceil(self.chunk)
    }

    fn chunk_len(&self, i: usize) -> usize {
        self.chunk.min(self.m * self.c - i * self.chunk)
    }
}

/// `for i in 0..n` over slices that are first cut to `n`. If a bounds check remained, the vectoriser would leave whole
/// vectors to its scalar remainder loop (measured: a third of the time).
macro_rules! each_lane {
    ($n:expr, mut $($m:ident),+; $($r:ident),+; $i:ident => $body:block) => {{
        let n = $n;
        $(let $m = &mut $m[..n];)+
        $(let $r = &$r[..n];)+
        for $i in 0..n $body
    }};
}

/// `K` rows of `wide` elements.
#[inline(always)]
fn rows_of<const K: usize>(x: &[f32], wide: usize) -> [&[f32]; K] {
    std::array::from_fn(|k| &x[k * wide..][..wide])
}

/// Writes the mean and `1 / sqrt(var + eps)` of the batch to `stats`, and updates the running statistics.
///
/// Each chunk computes its mean, then (from the cache) the sum of the deviations from it and of their squares. The
/// chunks are combined in f64. So a large mean causes no cancellation, and x is read from memory once.
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
            // A batch that overflowed (16-bit activations; its step is skipped) must not spoil the running
            // statistics for ever.
            let move_to = |old: f32, new: f64| {
                let moved = (f64::from(old) + f64::from(momentum) * (new - f64::from(old))) as f32;
                if moved.is_finite() { moved } else { old }
            };
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
    for rows in x.chunks(4 * wide) {
        if rows.len() == 4 * wide {
            let [x0, x1, x2, x3] = rows_of(rows, wide);
            each_lane!(wide, mut mean; x0, x1, x2, x3; i => { mean[i] += (x0[i] + x1[i]) + (x2[i] + x3[i]); });
        } else {
            for x in rows.chunks(wide) {
                each_lane!(x.len(), mut mean; x; i => { mean[i] += x[i]; });
            }
        }
    }
    for (j, a) in mean.iter_mut().enumerate() {
        *a /= count(x.len(), j, wide).max(1) as f32;
    }
    dev.fill(0.0);
    dev2.fill(0.0);
    for rows in x.chunks(4 * wide) {
        if rows.len() == 4 * wide {
            let [x0, x1, x2, x3] = rows_of(rows, wide);
            each_lane!(wide, mut dev, dev2; mean, x0, x1, x2, x3; i => {
                let (d0, d1, d2, d3) = (x0[i] - mean[i], x1[i] - mean[i], x2[i] - mean[i], x3[i] - mean[i]);
                dev[i] += (d0 + d1) + (d2 + d3);
                dev2[i] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
            });
        } else {
            for x in rows.chunks(wide) {
                each_lane!(x.len(), mut dev, dev2; mean, x; i => {
                    let d = x[i] - mean[i];
                    dev[i] += d;
                    dev2[i] += d * d;
                });
            }
        }
    }
}

/// Number of elements of lane `j` in a chunk of `len` elements.
fn count(len: usize, j: usize, wide: usize) -> usize {
    len.saturating_sub(j).div_ceil(wide)
}

/// Returns the sum and the sum of squared deviations from the mean, for `n` channels from `c0` on.
fn fold_stats(partial: &[f32], c0: usize, n: usize, s: &Split) -> ([f64; STRIP], [f64; STRIP]) {
    let (mut sum, mut m2) = ([0.0; STRIP], [0.0; STRIP]);
    each_partial(partial, c0, n, s, |j, count, [mean, dev, _]| sum[j] += count * mean + dev);
    let mean_of_all = sum.map(|v| v / s.m as f64);
    // Σ (x - mu)² = Σ ((x - mean) - off)² with off = mu - mean.
    each_partial(partial, c0, n, s, |j, count, [mean, dev, dev2]| {
        let off = mean_of_all[j] - mean;
        m2[j] += dev2 - 2.0 * off * dev + count * off * off;
    });
    (sum, m2.map(|v: f64| if v < 0.0 { 0.0 } else { v })) // NaN stays
}

/// Calls `f(j, elements, partial sums)` for the `n` channels from `c0` on, for each chunk and pixel, in order.
#[inline(always)]
fn each_partial(partial: &[f32], c0: usize, n: usize, s: &Split, mut f: impl FnMut(usize, f64, [f64; 3])) {
    for (i, p) in partial.chunks(3 * s.wide).enumerate() {
        let (rows, rest) = (s.chunk_len(i) / s.wide, s.chunk_len(i) % s.wide);
        for lane in (c0..s.wide).step_by(s.c) {
            let [mean, dev, dev2]: [&[f32]; 3] = std::array::from_fn(|k| &p[k * s.wide + lane..][..n]);
            for j in 0..n.min(STRIP) {
                let count = (rows + usize::from(lane + j < rest)) as f64;
                f(j, count, [mean[j].into(), dev[j].into(), dev2[j].into()]);
            }
        }
    }
}

/// Writes the running statistics to `stats` as mean and `1 / sqrt(var + eps)`.
pub(super) fn running_stats(stats: &mut [f32], mean: &[f32], var: &[f32], eps: f32) {
    let (out_mean, rstd) = stats.split_at_mut(mean.len());
    out_mean.copy_from_slice(mean);
    for (r, &v) in rstd.iter_mut().zip(var) {
        *r = (1.0 / (f64::from(v) + f64::from(eps)).sqrt()) as f32;
    }
}

/// Writes the lanes of mean, scale and shift: `y = (x - mean) * scale + shift`. Subtracting the mean first avoids
/// cancellation if the mean is large.
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

/// The gradient before the ReLU: `dy` where `y` is not clamped, else 0.
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
    let [mean, scale, shift] = rows_of(coef, wide);
    for ((y, x), r) in y.chunks_mut(wide).zip(x.chunks(wide)).zip(residual.chunks(wide)) {
        each_lane!(y.len(), mut y; x, r, mean, scale, shift; i => {
            let v = (x[i] - mean[i]).mul_add(scale[i], shift[i]);
            y[i] = rectify::<RELU>(if RESIDUAL { v + r[i] } else { v });
        });
    }
}

/// Writes the partial sums of `g * (x - mean) * rstd` and of `g` over each chunk, where `g` is the gradient before the
/// ReLU. `coef` is scratch for the lanes of mean and rstd.
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
    let [mean, rstd] = rows_of(coef, wide);
    for ((dy, x), y) in dy.chunks(wide).zip(x.chunks(wide)).zip(y.chunks(wide)) {
        each_lane!(dy.len(), mut dgamma, dbeta; dy, x, y, mean, rstd; i => {
            let g = mask::<RELU>(dy[i], y[i]);
            dgamma[i] += g * ((x[i] - mean[i]) * rstd[i]);
            dbeta[i] += g;
        });
    }
}

/// Adds up the two partial sums of all chunks, in order, in f64.
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

/// `target = sum`, or `target += sum` if `add`.
pub(super) fn put(target: &mut [f32], sum: &[f32], add: bool) {
    for (t, s) in target.iter_mut().zip(sum) {
        *t = if add { *t + s } else { *s };
    }
}

/// Writes the lanes of mean, a, b and d: `dx = a g + (b (x - mean) + d)`. Without `sums` (frozen) b and d are 0.
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

/// Writes the gradient of x to `dx`, which holds dy at first if `dy` is None.
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
    let [mean, a, b, d] = rows_of(coef, wide);
    for ((dx, x), y) in dx.chunks_mut(wide).zip(x.chunks(wide)).zip(y.chunks(wide)) {
        each_lane!(dx.len(), mut dx; x, y, mean, a, b, d; i => {
            let g = mask::<RELU>(dx[i], y[i]);
            dx[i] = a[i].mul_add(g, b[i].mul_add(x[i] - mean[i], d[i]));
        });
    }
}

/// Writes the gradient before the ReLU to `dresidual`, which holds dy at first if `dy` is None, and the gradient of x
/// to `dx`, which holds x at first if `x` is None.
pub(super) fn backward_train_residual(
    dresidual: &mut [f32],
    dy: Option<&[f32]>,
    dx: &mut [f32],
    x: Option<&[f32]>,
    y: Option<&[f32]>,
    coef: &[f32],
    s: &Split,
) {
    let run = if y.is_some() { train_residual_chunk::<true> } else { train_residual_chunk::<false> };
    dresidual.par_chunks_mut(s.chunk).zip(dx.par_chunks_mut(s.chunk)).enumerate().for_each(|(i, (dr, dx))| {
        let at = i * s.chunk;
        fill_from(dr, dy, at);
        fill_from(dx, x, at);
        run(dr, dx, y.map_or(&[], |y| &y[at..]), coef, s.wide);
    });
}

fn train_residual_chunk<const RELU: bool>(dr: &mut [f32], dx: &mut [f32], y: &[f32], coef: &[f32], wide: usize) {
    let [mean, a, b, d] = rows_of(coef, wide);
    for (r, (dr, dx)) in dr.chunks_mut(wide).zip(dx.chunks_mut(wide)).enumerate() {
        if RELU {
            mask_row(dr, &y[r * wide..]);
        }
        each_lane!(dr.len(), mut dx; dr, mean, a, b, d; i => {
            dx[i] = a[i].mul_add(dr[i], b[i].mul_add(dx[i] - mean[i], d[i]));
        });
    }
}

fn mask_row(g: &mut [f32], y: &[f32]) {
    each_lane!(g.len(), mut g; y; i => { g[i] = mask::<true>(g[i], y[i]); });
}

/// Like [`backward_train`], but for statistics that do not depend on x.
pub(super) fn backward_frozen(dx: &mut [f32], dy: Option<&[f32]>, y: Option<&[f32]>, coef: &[f32], s: &Split) {
    dx.par_chunks_mut(s.chunk).enumerate().for_each(|(i, dx)| {
        let at = i * s.chunk;
        fill_from(dx, dy, at);
        let [_, a] = rows_of(coef, s.wide);
        for (r, dx) in dx.chunks_mut(s.wide).enumerate() {
            match y {
                Some(y) => {
                    let y = &y[at + r * s.wide..];
                    each_lane!(dx.len(), mut dx; y, a; i => { dx[i] = mask::<true>(dx[i], y[i]) * a[i]; });
                }
                None => each_lane!(dx.len(), mut dx; a; i => { dx[i] *= a[i]; }),
            }
        }
    });
}

/// Like [`backward_train_residual`], but for statistics that do not depend on x. `dx` holds no input; None if it is not
/// wanted.
pub(super) fn backward_frozen_residual(
    dresidual: &mut [f32],
    dy: Option<&[f32]>,
    dx: Option<&mut [f32]>,
    y: Option<&[f32]>,
    coef: &[f32],
    s: &Split,
) {
    let masked = |dr: &mut [f32], at: usize| {
        fill_from(dr, dy, at);
        if let Some(y) = y {
            mask_row(dr, &y[at..]);
        }
    };
    let Some(dx) = dx else {
        dresidual.par_chunks_mut(s.chunk).enumerate().for_each(|(i, dr)| masked(dr, i * s.chunk));
        return;
    };
    let [_, a] = rows_of(coef, s.wide);
    dresidual.par_chunks_mut(s.chunk).zip(dx.par_chunks_mut(s.chunk)).enumerate().for_each(|(i, (dr, dx))| {
        for (r, (dr, dx)) in dr.chunks_mut(s.wide).zip(dx.chunks_mut(s.wide)).enumerate() {
            masked(dr, i * s.chunk + r * s.wide);
            each_lane!(dr.len(), mut dx; dr, a; i => { dx[i] = dr[i] * a[i]; });
        }
    });
}
