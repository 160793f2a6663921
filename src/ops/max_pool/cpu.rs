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
        y.fill(f32::NEG_INFINITY);
        if let Some(w) = which.as_deref_mut() {
            w[ox * s.c..][..s.c].fill(0);
        }
        for ky in 0..s.k {
            let Some(iy) = (oy * s.stride + ky).checked_sub(s.pad).filter(|&v| v < s.h) else { continue };
            for kx in 0..s.k {
                let Some(ix) = (ox * s.stride + kx).checked_sub(s.pad).filter(|&v| v < s.w) else { continue };
                let x = &x[((n * s.h + iy) * s.w + ix) * s.c..][..s.c];
                match which.as_deref_mut() {
                    Some(w) => {
                        let k = (ky * s.k + kx) as u8;
                        for ((y, w), &x) in y.iter_mut().zip(&mut w[ox * s.c..][..s.c]).zip(x) {
                            let larger = x > *y || x.is_nan();
                            *y = if larger { x } else { *y };
                            *w = if larger { k } else { *w };
                        }
                    }
                    None => {
                        for (y, &x) in y.iter_mut().zip(x) {
                            *y = if x > *y || x.is_nan() { x } else { *y };
                        }
                    }
                }
            }
        }
    }
}

/// One task per image: windows overlap, so rows of `dx` meet.
pub(super) fn backward(dx: &mut [f32], dy: &[f32], which: &[u8], s: &PoolShape) {
    let (image_in, image_out) = (s.h * s.w * s.c, s.oh() * s.ow() * s.c);
    if image_in == 0 || image_out == 0 {
        dx.fill(0.0);
        return;
    }
    dx.par_chunks_mut(image_in).zip(dy.par_chunks(image_out)).zip(which.par_chunks(image_out)).for_each(
        |((dx, dy), which)| {
            dx.fill(0.0);
            for oy in 0..s.oh() {
                for ox in 0..s.ow() {
                    let at = (oy * s.ow() + ox) * s.c;
                    for c in 0..s.c {
                        let k = usize::from(which[at + c]);
                        // The winner lies inside: the forward pass skipped the others.
                        let (iy, ix) = (oy * s.stride + k / s.k - s.pad, ox * s.stride + k % s.k - s.pad);
                        dx[(iy * s.w + ix) * s.c + c] += dy[at + c];
                    }
                }
            }
        },
    );
}
