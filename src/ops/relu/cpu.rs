//! CPU kernel of the rectifier: pointwise, in fixed chunks.

use rayon::prelude::*;

use crate::tensor::elementwise::CHUNK;

pub(super) fn forward(y: &mut [f32], x: &[f32]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = if x <= 0.0 { 0.0 } else { x }; // so that NaN stays
        }
    });
}
