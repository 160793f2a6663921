//! CPU kernels of the gradient norm: chunks in f64, joined in order.

use rayon::prelude::*;

use crate::tensor::elementwise::CHUNK;

pub(super) fn chunks(len: usize) -> usize {
    len.div_ceil(CHUNK)
}

/// The norm of each chunk as a pair (rounded, remainder): f32 storage with f64 digits, and the range of f32 is enough
/// because it is the norm that is kept, not its square.
pub(super) fn chunk_norms(partial: &mut [f32], g: &[f32]) {
    let each = |(p, g): (&mut [f32], &[f32])| {
        let norm = sum_of_squares(g).sqrt();
        p[0] = norm as f32;
        p[1] = if p[0].is_finite() { (norm - f64::from(p[0])) as f32 } else { 0.0 };
    };
    if g.len() <= CHUNK {
        partial.chunks_mut(2).zip(g.chunks(CHUNK)).for_each(each);
    } else {
        partial.par_chunks_mut(2).zip(g.par_chunks(CHUNK)).for_each(each);
    }
}

fn sum_of_squares(g: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    let rows = g.chunks_exact(16);
    for (lane, &g) in lanes.iter_mut().zip(rows.remainder()) {
        *lane = f64::from(g) * f64::from(g);
    }
    for row in rows {
        for (lane, &g) in lanes.iter_mut().zip(row) {
            *lane += f64::from(g) * f64::from(g);
        }
    }
    lanes.iter().sum()
}

pub(super) fn total(partial: &[f32]) -> f32 {
    let squares = partial.chunks_exact(2).map(|p| (f64::from(p[0]) + f64::from(p[1])).powi(2));
    squares.sum::<f64>().sqrt() as f32
}
