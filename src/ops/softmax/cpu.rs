//! CPU kernel of softmax.

use rayon::prelude::*;

/// Elements of one parallel task, about 10 µs of exponentials.
const CHUNK: usize = 4 * 1024;

pub(super) fn forward(y: &mut [f32], x: &[f32], k: usize) {
    if k == 0 {
        return;
    }
    let chunk = (CHUNK / k).max(1) * k;
    y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(k).zip(x.chunks_exact(k)) {
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for (y, x) in y.iter_mut().zip(x) {
                *y = (x - max).exp();
                sum += *y;
            }
            for y in y {
                *y /= sum;
            }
        }
    });
}
