//! CPU kernel of the moving average.

use rayon::prelude::*;

use crate::tensor::elementwise::CHUNK;

pub(super) fn update(average: &mut [f32], value: &[f32], share: f32) {
    let run = |(a, v): (&mut [f32], &[f32])| a.iter_mut().zip(v).for_each(|(a, v)| *a += share * (v - *a));
    if average.len() <= CHUNK {
        return run((average, value));
    }
    average.par_chunks_mut(CHUNK).zip(value.par_chunks(CHUNK)).for_each(run);
}
