//! Winograd transforms for tiles of 6 x 6 inputs, on 16 channels at a time.
//!
//! Polynomial products of degree 5, evaluated at 0, ±3/4, ±3/2 and infinity. F(4x4,3x3) gives 4 x 4 outputs of a 3 x 3
//! kernel (forward, data gradient), F(3x3,4x4) gives the 3 x 3 weight gradient of a 4 x 4 tile of dy; both share the
//! transform of the input. The points and their powers up to 9/4 * 9/16 are exact in f32, and keep the factors of the
//! three transforms close to 1: the error is 3 times smaller than with the usual 0, ±1, ±2 (docs/numerics.md).

use crate::cpu::simd::F32x16 as V;

const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
/// Derivatives of x (x^2 - a^2) (x^2 - b^2) at the points: they divide the kernel's side.
const NA: f32 = 2.0 * A2 * (A2 - B2);
const NB: f32 = 2.0 * B2 * (B2 - A2);

/// Points a tile is evaluated at.
pub(crate) const POINTS: usize = 36;
/// Outputs of a tile, in each direction.
pub(crate) const OUT: usize = 4;
/// Inputs of a tile, in each direction.
pub(crate) const IN: usize = 6;

#[inline(always)]
fn s(x: f32) -> V {
    V::splat(x)
}

/// `B^T d`: the input.
#[inline(always)]
fn input(d: [V; 6]) -> [V; 6] {
    let (m, sum) = (s(A2 * B2), s(-(A2 + B2)));
    let p = d[2].mul_add(s(-B2), d[4]);
    let q = d[1].mul_add(s(-A * B2), d[3] * s(A));
    let r = d[2].mul_add(s(-A2), d[4]);
    let t = d[1].mul_add(s(-B * A2), d[3] * s(B));
    [d[0].mul_add(m, d[2].mul_add(sum, d[4])), p + q, p - q, r + t, r - t, d[1].mul_add(m, d[3].mul_add(sum, d[5]))]
}

/// `G g`: a kernel of 3.
#[inline(always)]
fn kernel(g: [V; 3]) -> [V; 6] {
    let ea = g[2].mul_add(s(A2 / NA), g[0] * s(1.0 / NA));
    let eb = g[2].mul_add(s(B2 / NB), g[0] * s(1.0 / NB));
    let (fa, fb) = (g[1] * s(A / NA), g[1] * s(B / NB));
    [g[0] * s(1.0 / (A2 * B2)), ea + fa, ea - fa, eb + fb, eb - fb, g[2]]
}

/// `G' g`: a kernel of 4.
#[inline(always)]
fn kernel4(g: [V; 4]) -> [V; 6] {
    let ea = g[2].mul_add(s(A2 / NA), g[0] * s(1.0 / NA));
    let eb = g[2].mul_add(s(B2 / NB), g[0] * s(1.0 / NB));
    let fa = g[3].mul_add(s(A * A2 / NA), g[1] * s(A / NA));
    let fb = g[3].mul_add(s(B * B2 / NB), g[1] * s(B / NB));
    [g[0] * s(1.0 / (A2 * B2)), ea + fa, ea - fa, eb + fb, eb - fb, g[3]]
}

/// `A^T m`: 4 outputs.
#[inline(always)]
fn output(m: [V; 6]) -> [V; 4] {
    let (pa, qa) = (m[1] + m[2], m[1] - m[2]);
    let (pb, qb) = (m[3] + m[4], m[3] - m[4]);
    [
        m[0] + pa + pb,
        qa.mul_add(s(A), qb * s(B)),
        pa.mul_add(s(A2), pb * s(B2)),
        qa.mul_add(s(A * A2), qb.mul_add(s(B * B2), m[5])),
    ]
}

/// `A'^T m`: 3 outputs.
#[inline(always)]
fn output3(m: [V; 6]) -> [V; 3] {
    let (pa, qa) = (m[1] + m[2], m[1] - m[2]);
    let (pb, qb) = (m[3] + m[4], m[3] - m[4]);
    [m[0] + pa + pb, qa.mul_add(s(A), qb * s(B)), pa.mul_add(s(A2), pb.mul_add(s(B2), m[5]))]
}

/// Applies a 1-D transform of `N` to `M` values to the columns and then the rows of what `load(row, col)` gives, and
/// hands the results to `store(row, col, value)`.
#[inline(always)]
fn both<const N: usize, const M: usize>(
    f: impl Fn([V; N]) -> [V; M],
    load: impl Fn(usize, usize) -> V,
    mut store: impl FnMut(usize, usize, V),
) {
    let mut t = [[V::zero(); N]; M];
    for c in 0..N {
        let column = f(std::array::from_fn(|r| load(r, c)));
        t.iter_mut().zip(column).for_each(|(row, v)| row[c] = v);
    }
    for (r, row) in t.into_iter().enumerate() {
        for (c, v) in f(row).into_iter().enumerate() {
            store(r, c, v);
        }
    }
}

/// 6 x 6 inputs to [`POINTS`].
#[inline(always)]
pub(crate) fn input_2d(load: impl Fn(usize, usize) -> V, mut store: impl FnMut(usize, V)) {
    both::<6, 6>(input, load, |r, c, v| store(r * 6 + c, v));
}

/// A 3 x 3 kernel to [`POINTS`].
#[inline(always)]
pub(crate) fn kernel_2d(load: impl Fn(usize, usize) -> V, mut store: impl FnMut(usize, V)) {
    both::<3, 6>(kernel, load, |r, c, v| store(r * 6 + c, v));
}

/// A 4 x 4 tile of dy, in the part of the kernel, to [`POINTS`].
#[inline(always)]
pub(crate) fn kernel4_2d(load: impl Fn(usize, usize) -> V, mut store: impl FnMut(usize, V)) {
    both::<4, 6>(kernel4, load, |r, c, v| store(r * 6 + c, v));
}

/// [`POINTS`] to 4 x 4 outputs.
#[inline(always)]
pub(crate) fn output_2d(load: impl Fn(usize) -> V, store: impl FnMut(usize, usize, V)) {
    both::<6, 4>(output, |r, c| load(r * 6 + c), store);
}

/// [`POINTS`] to the 3 x 3 weight gradient.
#[inline(always)]
pub(crate) fn output3_2d(load: impl Fn(usize) -> V, store: impl FnMut(usize, usize, V)) {
    both::<6, 3>(output3, |r, c| load(r * 6 + c), store);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(v: V) -> f32 {
        let mut t = [0f32; 16];
        v.store(&mut t);
        t[3]
    }

    /// The transforms compute correlations of small integers, in one dimension.
    #[test]
    fn one_dimension() {
        let d: [f32; 6] = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0];
        let g: [f32; 4] = [2.0, -7.0, 1.0, 8.0];
        let dv = input(d.map(V::splat));
        let short = kernel([g[0], g[1], g[2]].map(V::splat));
        let y = output(std::array::from_fn(|i| dv[i] * short[i]));
        for (j, v) in y.into_iter().enumerate() {
            let want: f32 = (0..3).map(|i| g[i] * d[i + j]).sum();
            assert!((lanes(v) - want).abs() < 1e-4, "F(4,3) output {j}: {} {want}", lanes(v));
        }
        let long = kernel4(g.map(V::splat));
        let y = output3(std::array::from_fn(|i| dv[i] * long[i]));
        for (j, v) in y.into_iter().enumerate() {
            let want: f32 = (0..4).map(|i| g[i] * d[i + j]).sum();
            assert!((lanes(v) - want).abs() < 1e-4, "F(3,4) output {j}: {} {want}", lanes(v));
        }
    }
}
