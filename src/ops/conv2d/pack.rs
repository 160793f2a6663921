//! Packing the right-hand factor of a product into panels: `[columns / NR][k][NR]`, zero beyond the last column.

use crate::cpu::microkernel::NR;
use crate::cpu::simd::{self, F32x16};

/// Panel from rows: `panel[k, j] = row(k)[col + j]`, for `panel.len() / NR` values of k and `n` columns.
pub(crate) fn from_rows<'a>(panel: &mut [f32], col: usize, n: usize, row: impl Fn(usize) -> &'a [f32]) {
    for (k, dst) in panel.chunks_exact_mut(NR).enumerate() {
        simd::copy(&mut dst[..n], &row(k)[col..col + n]);
        if n < NR {
            simd::zero(&mut dst[n..]);
        }
    }
}

/// Panel from the columns of a row-major matrix: `panel[k, j] = w[(row + j) * ld + k0 + k]`, for `n` rows of `w`.
pub(crate) fn from_columns(panel: &mut [f32], w: &[f32], ld: usize, row: usize, n: usize, k0: usize) {
    let depth = panel.len() / NR;
    if n < NR {
        panel.fill(0.0);
    }
    for k in (0..depth).step_by(16) {
        let m = (depth - k).min(16);
        for j in (0..n).step_by(16) {
            let at = |i: usize| (row + j + i) * ld + k0 + k;
            let zero = F32x16::zero();
            let rows = if j + 16 <= n && m == 16 {
                std::array::from_fn(|i| F32x16::load(&w[at(i)..]))
            } else {
                std::array::from_fn(|i| if j + i < n { F32x16::load_partial(&w[at(i)..][..m]) } else { zero })
            };
            for (i, v) in F32x16::transpose(rows).into_iter().take(m).enumerate() {
                v.store(&mut panel[(k + i) * NR + j..]);
            }
        }
    }
}
