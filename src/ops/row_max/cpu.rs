//! CPU kernel of the rows' maxima.

use rayon::prelude::*;

/// Elements of one parallel task: 64 KiB.
const CHUNK: usize = 16 * 1024;
const LANES: usize = 16;

pub(super) fn forward(y: &mut [f32], x: &[f32], k: usize) {
    let rows = (CHUNK / k).max(1);
    y.par_chunks_mut(rows).zip(x.par_chunks(rows * k)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(k)) {
            *y = largest(x);
        }
    });
}

/// The larger; a NaN of either stays.
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

fn largest(x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for v in vectors {
        for (lane, &v) in lanes.iter_mut().zip(v) {
            *lane = larger(*lane, v);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}
