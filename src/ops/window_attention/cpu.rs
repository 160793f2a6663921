//! CPU kernels of window attention: a task is a few windows, and goes head by head through packed copies of one
//! window's q, k and v that stay in its cache, on the micro-kernel of the matrix products.
//!
//! Padded tokens have the bias as their q, k and v; their results are not written, or go to the bias.

use rayon::prelude::*;

use super::{AttentionShape, MAX_SIDE};
use crate::cpu::microkernel::{Factors, Finish, Isa, MR, NR, tile};
use crate::cpu::simd::{self, F32x16, LANES};
use crate::cpu::view::{MatMut, lanes_len};
use crate::cpu::windows::{Cells, Outputs, Part, Window, par_windows};

const MAX_TOKENS: usize = MAX_SIDE * MAX_SIDE;
/// There should be so many tasks, of up to so many windows: the sums over a task's windows are folded once.
const TASKS: usize = 64;
const MAX_CHUNK: usize = 8;
/// Between tokens of different parts of the map.
const MASKED: f32 = -100.0;
/// Indices of rows, for the micro-kernel.
const ROWS: [usize; MAX_TOKENS] = {
    let mut rows = [0; MAX_TOKENS];
    let mut i = 0;
    while i < MAX_TOKENS {
        rows[i] = i;
        i += 1;
    }
    rows
};

/// Sizes of one head of one window, packed.
#[derive(Clone, Copy)]
struct Sizes {
    /// Tokens, and rounded up to whole vectors.
    t: usize,
    tp: usize,
    /// Width of a head, and rounded up.
    d: usize,
    dp: usize,
}

fn sizes(s: &AttentionShape) -> Sizes {
    let (t, d) = (s.windows.tokens(), s.head_dim());
    Sizes { t, tp: t.next_multiple_of(LANES), d, dp: d.next_multiple_of(LANES) }
}

fn chunk(s: &AttentionShape) -> usize {
    (s.windows.count() / TASKS).clamp(1, MAX_CHUNK)
}

fn tasks(s: &AttentionShape) -> usize {
    s.windows.count().div_ceil(chunk(s))
}

/// Elements of the relative position bias of all pairs of tokens, `[heads,T,tp]`.
fn pairs(s: &AttentionShape) -> usize {
    let z = sizes(s);
    s.heads * z.t * z.tp
}

fn forward_lane(z: Sizes) -> usize {
    3 * z.t * z.dp + z.dp * z.tp + z.t * z.tp
}

fn backward_lane(z: Sizes) -> usize {
    4 * z.t * z.dp + 2 * z.dp * z.tp + 3 * z.t * z.tp
}

/// Workspace of [`forward`], in elements.
pub(super) fn forward_workspace(s: &AttentionShape) -> usize {
    pairs(s) + lanes_len(tasks(s), forward_lane(sizes(s)))
}

/// Workspace of [`backward`], in elements.
pub(super) fn backward_workspace(s: &AttentionShape) -> usize {
    pairs(s) + lanes_len(tasks(s), backward_lane(sizes(s)))
}

/// Rows and columns of the partial sums of [`backward`]: one row a task.
pub(super) fn partial_sums(s: &AttentionShape) -> [usize; 2] {
    [tasks(s), s.heads * s.table_rows() + if s.windows.padded() { 2 * s.c } else { 0 }]
}

/// `lse` is not written where it is empty.
pub(super) fn forward(
    y: &mut [f32],
    lse: &mut [f32],
    qkv: &[f32],
    qkv_bias: &[f32],
    table: &[f32],
    ws: &mut [f32],
    s: &AttentionShape,
) {
    let (z, isa) = (sizes(s), Isa::detect());
    let (bias, lanes) = expand(ws, table, s, z);
    let per_window = if lse.is_empty() { 0 } else { s.heads * z.t };
    let out = Outputs { map: y, c: s.c, windows: lse, per_window, tasks: &mut [], per_task: 0 };
    par_windows(s.windows, chunk(s), out, lanes, forward_lane(z), |mut part, lane| {
        let [q, k, v, kt, p] = split(lane, [z.t * z.dp, z.t * z.dp, z.t * z.dp, z.dp * z.tp, z.t * z.tp]);
        for (i, n) in part.cells.range().enumerate() {
            let place = Place::new(s, n);
            for head in 0..s.heads {
                let (next, next_head) = if head + 1 < s.heads { (n, head + 1) } else { (n + 1, 0) };
                let next = part.cells.range().contains(&next).then(|| s.windows.window(next));
                for (to, what) in [(&mut *q, 0), (k, 1), (v, 2)] {
                    let factor = if what == 0 { s.scale() } else { 1.0 };
                    each_token(s, |t, a, b| {
                        let from = place.window.pixel(a, b).map_or(qkv_bias, |at| &qkv[at * 3 * s.c..][..3 * s.c]);
                        pack(&mut to[t * z.dp..][..z.dp], &from[what * s.c + head * z.d..][..z.d], factor);
                    });
                }
                transpose(kt, k, z);
                product(isa, p, z.tp, z.t, Factors { a: q, rs: z.dp, cs: 1, b: kt, ldb: z.tp, k: z.d });
                for (t, row) in p.chunks_exact_mut(z.tp).enumerate() {
                    let bias = &bias[(head * z.t + t) * z.tp..][..z.tp];
                    let stat = softmax(row, bias, place.mask(t, z.tp));
                    if per_window > 0 {
                        part.windows[(i * s.heads + head) * z.t + t] = stat;
                    }
                    if let Some(at) = pixel(next.as_ref(), t) {
                        prefetch(&qkv[at * 3 * s.c..][..3 * s.c], next_head, s, z);
                    }
                }
                let o = &mut *q; // its product is done
                product(isa, o, z.dp, z.t, Factors { a: p, rs: z.tp, cs: 1, b: v, ldb: z.dp, k: z.t });
                each_token(s, |t, a, b| {
                    if let Some(y) = part.cells.get(&place.window, a, b) {
                        simd::copy(&mut y[head * z.d..][..z.d], &o[t * z.dp..][..z.d]);
                    }
                });
            }
        }
    });
}

/// The saved tensors that [`backward`] reads.
pub(super) struct Saved<'a> {
    /// None: dqkv holds it, and is overwritten.
    pub qkv: Option<&'a [f32]>,
    pub qkv_bias: &'a [f32],
    pub table: &'a [f32],
    pub lse: &'a [f32],
}

/// Partial sums: the table's gradient by head, then those of the k and the v of padded tokens.
pub(super) fn backward(
    dqkv: &mut [f32],
    partial: &mut [f32],
    dy: &[f32],
    saved: &Saved<'_>,
    ws: &mut [f32],
    s: &AttentionShape,
) {
    let (z, isa) = (sizes(s), Isa::detect());
    let (bias, lanes) = expand(ws, saved.table, s, z);
    let per_task = partial_sums(s)[1];
    let out = Outputs { map: dqkv, c: 3 * s.c, windows: &mut [], per_window: 0, tasks: partial, per_task };
    par_windows(s.windows, chunk(s), out, lanes, backward_lane(z), |part, lane| {
        let Part { mut cells, task, .. } = part;
        let (x, square, turned) = (z.t * z.dp, z.t * z.tp, z.dp * z.tp);
        let [q, k, v, g, kt, vt, p, ds, sum] = split(lane, [x, x, x, x, turned, turned, square, square, square]);
        let (dtable, dbias) = task.split_at_mut(s.heads * s.table_rows());
        dbias.fill(0.0);
        for (head, dtable) in dtable.chunks_exact_mut(s.table_rows()).enumerate() {
            simd::zero(sum);
            for n in cells.range() {
                let place = Place::new(s, n);
                let column = head * z.d;
                let (next, next_head) =
                    if n + 1 < cells.range().end { (n + 1, head) } else { (cells.range().start, head + 1) };
                let next = (next_head < s.heads).then(|| s.windows.window(next));
                each_token(s, |t, a, b| {
                    let at = place.window.pixel(a, b);
                    let own = t * z.dp..(t + 1) * z.dp;
                    match at {
                        Some(at) => pack(&mut g[own.clone()], &dy[at * s.c + column..][..z.d], 1.0),
                        None => simd::zero(&mut g[own.clone()]),
                    }
                    let from = match (at, saved.qkv) {
                        (None, _) => saved.qkv_bias,
                        (Some(at), Some(qkv)) => &qkv[at * 3 * s.c..][..3 * s.c],
                        (Some(_), None) => cells.get(&place.window, a, b).expect("a pixel of this window"),
                    };
                    pack(&mut q[own.clone()], &from[column..][..z.d], s.scale());
                    pack(&mut k[own.clone()], &from[s.c + column..][..z.d], 1.0);
                    pack(&mut v[own], &from[2 * s.c + column..][..z.d], 1.0);
                });
                transpose(kt, k, z);
                transpose(vt, v, z);
                product(isa, p, z.tp, z.t, Factors { a: q, rs: z.dp, cs: 1, b: kt, ldb: z.tp, k: z.d });
                product(isa, ds, z.tp, z.t, Factors { a: g, rs: z.dp, cs: 1, b: vt, ldb: z.tp, k: z.d });
                let lse = &saved.lse[(n * s.heads + head) * z.t..][..z.t];
                let rows = p.chunks_exact_mut(z.tp).zip(ds.chunks_exact_mut(z.tp)).zip(sum.chunks_exact_mut(z.tp));
                for (t, ((p, ds), sum)) in rows.enumerate() {
                    let bias = &bias[(head * z.t + t) * z.tp..][..z.tp];
                    softmax_backward(p, ds, sum, bias, place.mask(t, z.tp), lse[t]);
                    if let Some(at) = pixel(next.as_ref(), t) {
                        simd::prefetch(&dy[at * s.c + next_head * z.d..][..z.d]);
                        if let Some(qkv) = saved.qkv {
                            prefetch(&qkv[at * 3 * s.c..][..3 * s.c], next_head, s, z);
                        }
                        // Written later; read too, where it holds qkv.
                        let [a, b] = [t / s.windows.side, t % s.windows.side];
                        let cell = next.as_ref().and_then(|next| cells.get(next, a, b));
                        prefetch(cell.expect("a pixel of this window"), next_head, s, z);
                    }
                }
                // The buffers of what is needed no more.
                let (dq, dk, dv) = (&mut *v, &mut *kt, &mut *vt);
                product(isa, dv, z.dp, z.t, Factors { a: p, rs: 1, cs: z.tp, b: g, ldb: z.dp, k: z.t });
                product(isa, dk, z.dp, z.t, Factors { a: ds, rs: 1, cs: z.tp, b: q, ldb: z.dp, k: z.t });
                product(isa, dq, z.dp, z.t, Factors { a: ds, rs: z.tp, cs: 1, b: k, ldb: z.dp, k: z.t });
                Rows { dq, dk, dv }.write(&mut cells, dbias, &place.window, column, s, z);
            }
            fold_pairs(dtable, sum, s, z);
        }
    });
}

/// Gradients of one window's tokens.
struct Rows<'a> {
    dq: &'a [f32],
    dk: &'a [f32],
    dv: &'a [f32],
}

impl Rows<'_> {
    /// To the pixels, and those of padded tokens to `dbias`, the sums for k and v.
    fn write(
        &self,
        cells: &mut Cells<'_>,
        dbias: &mut [f32],
        window: &Window,
        column: usize,
        s: &AttentionShape,
        z: Sizes,
    ) {
        each_token(s, |t, a, b| {
            let own = t * z.dp..t * z.dp + z.d;
            if let Some(dx) = cells.get(window, a, b) {
                pack_tail(&mut dx[column..][..z.d], &self.dq[own.clone()], s.scale());
                simd::copy(&mut dx[s.c + column..][..z.d], &self.dk[own.clone()]);
                simd::copy(&mut dx[2 * s.c + column..][..z.d], &self.dv[own]);
            } else {
                for (first, dx) in [(0, self.dk), (s.c, self.dv)] {
                    dbias[first + column..][..z.d].iter_mut().zip(&dx[own.clone()]).for_each(|(sum, v)| *sum += v);
                }
            }
        });
    }
}

/// `out (+)= the table's gradient`, tasks in order.
pub(super) fn fold_table(out: &mut [f32], accumulate: bool, partial: &[f32], s: &AttentionShape) {
    let rows = s.table_rows();
    for head in 0..s.heads {
        let mut sum = [0f64; (2 * MAX_SIDE - 1) * (2 * MAX_SIDE - 1)];
        for task in partial.chunks_exact(partial_sums(s)[1]) {
            sum.iter_mut().zip(&task[head * rows..][..rows]).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        for (out, sum) in out[head..].iter_mut().step_by(s.heads).zip(sum) {
            *out = if accumulate { *out + sum as f32 } else { sum as f32 };
        }
    }
}

/// `out (+)= the gradient of the bias from padded tokens`, tasks in order.
pub(super) fn fold_bias(out: &mut [f32], accumulate: bool, partial: &[f32], s: &AttentionShape) {
    let first = s.heads * s.table_rows();
    if !accumulate {
        out.fill(0.0);
    }
    out[s.c..].par_iter_mut().enumerate().with_min_len(256).for_each(|(i, out)| {
        let sum: f64 = partial.chunks_exact(partial_sums(s)[1]).map(|task| f64::from(task[first + i])).sum();
        *out += sum as f32;
    });
}

/// A window: where its tokens are, and who does not see whom.
struct Place {
    window: Window,
    /// The region of each token, and for each region the mask of the tokens that a token of it sees.
    regions: [u8; MAX_TOKENS],
    masks: [[f32; MAX_TOKENS]; 4],
}

impl Place {
    fn new(s: &AttentionShape, n: usize) -> Place {
        let window = s.windows.window(n);
        let mut place = Place { window, regions: [0; MAX_TOKENS], masks: [[0.0; MAX_TOKENS]; 4] };
        if window.wraps != [false; 2] {
            each_token(s, |t, a, b| {
                let region = window.region(a, b);
                place.regions[t] = region as u8;
                for (r, mask) in place.masks.iter_mut().enumerate() {
                    mask[t] = if r == region { 0.0 } else { MASKED };
                }
            });
        }
        place
    }

    /// The mask added to the scores of token `t`; None in windows that do not wrap.
    fn mask(&self, t: usize, tp: usize) -> Option<&[f32]> {
        (self.window.wraps != [false; 2]).then(|| &self.masks[usize::from(self.regions[t])][..tp])
    }
}

/// The pixel of token `t`, if there is a window.
fn pixel(window: Option<&Window>, t: usize) -> Option<usize> {
    window.and_then(|w| w.pixel(t / w.side(), t % w.side()))
}

/// Prefetches a head's q, k and v of a pixel, which lie far from the next pixel's: waiting would be half of the time.
#[inline(always)]
fn prefetch(pixel: &[f32], head: usize, s: &AttentionShape, z: Sizes) {
    for what in 0..3 {
        simd::prefetch(&pixel[what * s.c + head * z.d..][..z.d]);
    }
}

/// `f(token, its row, its column)`.
#[inline(always)]
fn each_token(s: &AttentionShape, mut f: impl FnMut(usize, usize, usize)) {
    let side = s.windows.side;
    for a in 0..side {
        for b in 0..side {
            f(a * side + b, a, b);
        }
    }
}

/// `bias[head,i,j]`, the table's entry for tokens i and j, behind the last token what no softmax sees; and the rest of
/// the workspace.
fn expand<'a>(ws: &'a mut [f32], table: &[f32], s: &AttentionShape, z: Sizes) -> (&'a [f32], &'a mut [f32]) {
    let (bias, lanes) = ws.split_at_mut(pairs(s));
    bias.par_chunks_mut(z.t * z.tp).enumerate().for_each(|(head, bias)| {
        bias.fill(f32::NEG_INFINITY);
        each_pair(s, |i, j, row| bias[i * z.tp + j] = table[row * s.heads + head]);
    });
    (bias, lanes)
}

/// The sum of the pairs that share an entry of the table.
fn fold_pairs(dtable: &mut [f32], sum: &[f32], s: &AttentionShape, z: Sizes) {
    dtable.fill(0.0);
    each_pair(s, |i, j, row| dtable[row] += sum[i * z.tp + j]);
}

/// `f(i, j, row of the table)` for all pairs of tokens.
#[inline(always)]
fn each_pair(s: &AttentionShape, mut f: impl FnMut(usize, usize, usize)) {
    let side = s.windows.side;
    let wide = 2 * side - 1;
    each_token(s, |i, a, b| {
        for c in 0..side {
            // Row (a - c, b - d) of the table, in ascending order of d from the back.
            let first = (a + side - 1 - c) * wide + b + side - 1;
            for d in 0..side {
                f(i, c * side + d, first - d);
            }
        }
    });
}

/// Cuts a lane.
fn split<const N: usize>(mut lane: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    lens.map(|len| {
        let (head, rest) = std::mem::take(&mut lane).split_at_mut(len);
        lane = rest;
        head
    })
}

/// `to = factor from`, and zeros behind it to the end of `to`, a whole number of vectors.
#[inline(always)]
fn pack(to: &mut [f32], from: &[f32], factor: f32) {
    for (to, from) in to.chunks_exact_mut(LANES).zip(from.chunks(LANES)) {
        (F32x16::load_partial(from) * F32x16::splat(factor)).store(to);
    }
}

/// `to = factor from`, of any length.
#[inline(always)]
fn pack_tail(to: &mut [f32], from: &[f32], factor: f32) {
    for (to, from) in to.chunks_mut(LANES).zip(from.chunks(LANES)) {
        (F32x16::load_partial(from) * F32x16::splat(factor)).store_partial(to);
    }
}

/// `to[d,t] = from[t,d]`, zeros behind the last token: what is garbage there might be NaN.
fn transpose(to: &mut [f32], from: &[f32], z: Sizes) {
    for t0 in (0..z.tp).step_by(LANES) {
        for d0 in (0..z.dp).step_by(LANES) {
            let rows = std::array::from_fn(|i| match from.get((t0 + i) * z.dp + d0..) {
                Some(row) if t0 + i < z.t => F32x16::load(row),
                _ => F32x16::zero(),
            });
            for (i, row) in F32x16::transpose(rows).into_iter().enumerate() {
                row.store(&mut to[(d0 + i) * z.tp + t0..]);
            }
        }
    }
}

/// `c[m,n] = a b`, rows of `c` and `b` being whole vectors.
fn product(isa: Isa, c: &mut [f32], n: usize, m: usize, f: Factors<'_>) {
    let mut c = MatMut::new(c, m, n, n);
    let height = m.div_ceil(m.div_ceil(MR)); // as even as possible
    for j in (0..n).step_by(NR) {
        for i in (0..m).step_by(height) {
            let f = Factors { a: &f.a[i * f.rs..], b: &f.b[j..], ..f };
            tile(isa, f, &mut c, &ROWS[i..m.min(i + height)], j, NR.min(n - j), Finish::default());
        }
    }
}

/// For loops whose rows of `$len` elements are to stay in registers: `$f::<NV>($args)`, NV vectors a row.
macro_rules! by_vectors {
    ($len:expr, $f:ident($($arg:expr),*)) => {
        match $len / LANES {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            3 => $f::<3>($($arg),*),
            4 => $f::<4>($($arg),*),
            5 => $f::<5>($($arg),*),
            6 => $f::<6>($($arg),*),
            7 => $f::<7>($($arg),*),
            8 => $f::<8>($($arg),*),
            _ => $f::<9>($($arg),*),
        }
    };
}

/// `x = softmax(x + bias + mask)`; returns the logarithm of the sum of the exponentials.
fn softmax(x: &mut [f32], bias: &[f32], mask: Option<&[f32]>) -> f32 {
    by_vectors!(x.len(), softmax_row(x, bias, mask))
}

#[inline(always)]
fn scores<const NV: usize>(x: &[f32], bias: &[f32], mask: Option<&[f32]>) -> [F32x16; NV] {
    let (x, bias) = (&x[..NV * LANES], &bias[..NV * LANES]);
    let mut v: [F32x16; NV] = std::array::from_fn(|i| F32x16::load(&x[i * LANES..]) + F32x16::load(&bias[i * LANES..]));
    if let Some(mask) = mask {
        let mask = &mask[..NV * LANES];
        for (i, v) in v.iter_mut().enumerate() {
            *v = *v + F32x16::load(&mask[i * LANES..]);
        }
    }
    v
}

#[inline(always)]
fn softmax_row<const NV: usize>(x: &mut [f32], bias: &[f32], mask: Option<&[f32]>) -> f32 {
    let mut v = scores::<NV>(x, bias, mask);
    let largest = v.iter().skip(1).fold(v[0], |m, &v| m.max(v)).largest();
    let mut sum = F32x16::zero();
    for v in &mut v {
        *v = (*v - F32x16::splat(largest)).exp();
        sum = sum + *v;
    }
    let sum = sum.sum();
    let factor = F32x16::splat(1.0 / sum);
    for (v, x) in v.into_iter().zip(x.chunks_exact_mut(LANES)) {
        (v * factor).store(x);
    }
    largest + sum.ln()
}

/// From scores and dp: `p = exp(p + bias + mask - lse)`, `dp = p (dp - <p, dp>)`, and `sum += dp`.
fn softmax_backward(p: &mut [f32], dp: &mut [f32], sum: &mut [f32], bias: &[f32], mask: Option<&[f32]>, lse: f32) {
    by_vectors!(p.len(), softmax_backward_row(p, dp, sum, bias, mask, lse))
}

#[inline(always)]
fn softmax_backward_row<const NV: usize>(
    p: &mut [f32],
    dp: &mut [f32],
    sum: &mut [f32],
    bias: &[f32],
    mask: Option<&[f32]>,
    lse: f32,
) {
    let mut v = scores::<NV>(p, bias, mask);
    let (p, dp, sum) = (&mut p[..NV * LANES], &mut dp[..NV * LANES], &mut sum[..NV * LANES]);
    let g: [F32x16; NV] = std::array::from_fn(|i| F32x16::load(&dp[i * LANES..]));
    let mut dot = F32x16::zero();
    for (i, (v, &g)) in v.iter_mut().zip(&g).enumerate() {
        *v = (*v - F32x16::splat(lse)).exp();
        v.store(&mut p[i * LANES..]);
        dot = v.mul_add(g, dot);
    }
    let dot = F32x16::splat(dot.sum());
    for (i, (v, g)) in v.into_iter().zip(g).enumerate() {
        let ds = v * (g - dot);
        ds.store(&mut dp[i * LANES..]);
        let sum = &mut sum[i * LANES..][..LANES];
        (F32x16::load(sum) + ds).store(sum);
    }
}
