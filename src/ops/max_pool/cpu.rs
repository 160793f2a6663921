//! CPU kernels of max pooling.

use rayon::prelude::*;

use super::PoolShape;

/// One task per output row: `y` and the winner's place in its window, first of equals.
pub(super) fn forward(y: &mut [f32], which: Option<&mut [u8]>, x: &[f32], s: &PoolShape) {
    let row = s.ow() * s.c;
    if row == 0 {
        return;
    }
    match which {
        Some(which) => y
            .par_chunks_mut(row)
            .zip(which.par_chunks_mut(row))
            .enumerate()
            .for_each(|(i, (y, which))| forward_row(y, Some(which), x, s, i)),
        None => y.par_chunks_mut(row).enumerate().for_each(|(i, y)| forward_row(y, None, x, s, i)),
    }
}

fn forward_row(y: &mut [f32], mut which: Option<&mut [u8]>, x: &[f32], s: &PoolShape, i: usize) {
    let (n, oy) = (i / s.oh(), i % s.oh());
    for ox in 0..s.ow() {
        let y = &mut y[ox * s.c..][..s.c];
        let mut which = which.as_deref_mut().map(|w| &mut w[ox * s.c..][..s.c]);
        let mut first = true;
        for ky in 0..s.k {
            let Some(iy) = (oy * s.stride + ky).checked_sub(s.pad).filter(|&v| v < s.h) else { continue };
            for kx in 0..s.k {
                let Some(ix) = (ox * s.stride + kx).checked_sub(s.pad).filter(|&v| v < s.w) else { continue };
                let x = &x[((n * s.h + iy) * s.w + ix) * s.c..][..s.c];
                let tap = s.tap(ky, kx);
                // Starting from the first cell inside, not from -inf: the winner of a window of -inf lies inside too.
                match (which.as_deref_mut(), std::mem::take(&mut first)) {
                    (which, true) => {
                        y.copy_from_slice(x);
                        which.into_iter().for_each(|w| w.fill(tap));
                    }
                    (Some(which), false) => {
                        for ((y, w), &x) in y.iter_mut().zip(which).zip(x) {
                            let larger = x > *y || x.is_nan();
                            *y = if larger { x } else { *y };
                            *w = if larger { tap } else { *w };
                        }
                    }
                    (None, false) => {
                        for (y, &x) in y.iter_mut().zip(x) {
                            *y = if x > *y || x.is_nan() { x } else { *y };
                        }
                    }
                }
            }
        }
    }
}

/// One task per input row, which gathers from the output rows whose windows cover it: windows overlap, so scattering
/// would make tasks meet.
pub(super) fn backward(dx: &mut [f32], dy: &[f32], which: &[u8], s: &PoolShape) {
    let (row, row_out) = (s.w * s.c, s.ow() * s.c);
    if row == 0 {
        return;
    }
    dx.par_chunks_mut(row).enumerate().for_each(|(i, dx)| {
        dx.fill(0.0);
        let (n, iy) = (i / s.h, i % s.h);
        for ky in 0..s.k {
            let Some(start) = (iy + s.pad).checked_sub(ky).filter(|v| v.is_multiple_of(s.stride)) else { continue };
            let oy = start / s.stride;
            if oy >= s.oh() {
                continue;
            }
            let at = (n * s.oh() + oy) * row_out;
            let (dy, which) = (&dy[at..][..row_out], &which[at..][..row_out]);
            for (ox, (dy, which)) in dy.chunks_exact(s.c).zip(which.chunks_exact(s.c)).enumerate() {
                for kx in 0..s.k {
                    let Some(ix) = (ox * s.stride + kx).checked_sub(s.pad).filter(|&v| v < s.w) else { continue };
                    let tap = s.tap(ky, kx);
                    for ((dx, dy), which) in dx[ix * s.c..][..s.c].iter_mut().zip(dy).zip(which) {
                        *dx += if *which == tap { *dy } else { 0.0 };
                    }
                }
            }
        }
    });
}
