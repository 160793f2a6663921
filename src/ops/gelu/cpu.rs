//! CPU kernels of GELU: pointwise, in fixed chunks, written for the auto-vectoriser.

use std::f32::consts::LN_2;

use rayon::prelude::*;

use crate::tensor::elementwise::CHUNK;

/// `exp(-a²/2)` and, with it, the chance `Q(a) = Φ(-a)` that a normal number is beyond `a`; for `a` in [0, 12], NaN for
/// NaN.
///
/// `Q = exp(-a²/2) t P(t)` with `t = 1 / (1 + 0.27587 a)`: the form of Abramowitz and Stegun 26.2.17, P fitted anew
/// (degree 5, largest absolute error of Q 1.3e-8, where theirs has 7.5e-8). The exponential is 2^k times a polynomial
/// in the rest (degree 6, 2e-9). In f32 rounding adds up to 1.5e-7 (absolute); torch's vectorised erf leaves twice
/// that.
#[inline(always)]
fn tail(a: f32) -> (f32, f32) {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: added, it leaves an integer in the lowest bits
    let z = a * a * -0.721_347_5; // -a²/2 / ln 2
    let shifted = z + ROUND;
    let f = z - (shifted - ROUND);
    let two_to_k = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let e = 1.534_581_2e-4_f32.mul_add(f, 1.339_993_1e-3).mul_add(f, 9.618_489e-3).mul_add(f, 5.550_328_6e-2);
    let e = e.mul_add(f, 0.240_226_46).mul_add(f, LN_2).mul_add(f, 1.0) * two_to_k;
    let t = 1.0 / 0.275_873_4_f32.mul_add(a, 1.0);
    let p = (-0.113_626_9_f32).mul_add(t, 0.442_206_53).mul_add(t, -0.315_982_22).mul_add(t, 0.323_603_15);
    let p = p.mul_add(t, 4.615_419_4e-2).mul_add(t, 0.117_645_25);
    (e, e * (t * p))
}

/// |x|, at most 12: behind it `x Q(x)` is below 1e-31. NaN stays.
#[inline(always)]
fn magnitude(x: f32) -> f32 {
    let a = x.abs();
    if a > 12.0 { 12.0 } else { a }
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    let a = magnitude(x);
    let (_, q) = tail(a);
    let positive = if x > 0.0 { x } else { 0.0 };
    (-a).mul_add(q, positive)
}

/// `Φ(x) + x φ(x)`.
#[inline(always)]
fn slope(x: f32) -> f32 {
    const PHI_0: f32 = 0.398_942_3; // 1 / sqrt(2π)
    let a = magnitude(x);
    let (e, q) = tail(a);
    let below = (-a * PHI_0).mul_add(e, q); // the slope at -a; that at a is 1 minus it
    if x > 0.0 { 1.0 - below } else { below }
}

pub(super) fn forward(y: &mut [f32], x: &[f32]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = gelu(x);
        }
    });
}

/// `dx`, holding `dy` or to be made from it, becomes the gradient of x.
pub(super) fn backward(dx: &mut [f32], dy: Option<&[f32]>, x: &[f32]) {
    match dy {
        None => dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(dx, x)| {
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx *= slope(x);
            }
        }),
        Some(dy) => {
            dx.par_chunks_mut(CHUNK).zip(dy.par_chunks(CHUNK)).zip(x.par_chunks(CHUNK)).for_each(|((dx, dy), x)| {
                for ((dx, dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                    *dx = dy * slope(x);
                }
            })
        }
    }
}
