//! CPU kernel of AdamW.

use rayon::prelude::*;

use super::AdamWRule;
use crate::ops::elementwise::CHUNK;

#[derive(Clone, Copy)]
pub(super) struct Rates {
    pub lr: f32,
    pub grad_scale: f32,
    pub correction: [f32; 2],
    pub rule: AdamWRule,
    pub weight_decay: f32,
}

pub(super) fn step(value: &mut [f32], grad: &[f32], mean: &mut [f32], square: &mut [f32], rates: Rates) {
    if value.len() <= CHUNK {
        return chunk(value, grad, mean, square, rates);
    }
    value
        .par_chunks_mut(CHUNK)
        .zip(grad.par_chunks(CHUNK))
        .zip(mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK)))
        .for_each(|((value, grad), (mean, square))| chunk(value, grad, mean, square, rates));
}

fn chunk(value: &mut [f32], grad: &[f32], mean: &mut [f32], square: &mut [f32], r: Rates) {
    let [b1, b2] = r.rule.betas.map(|b| b as f32);
    let [n1, n2] = r.rule.betas.map(|b| (1.0 - b) as f32);
    let keep = 1.0 - r.lr * r.weight_decay;
    let (rate, root) = (r.lr / r.correction[0], 1.0 / r.correction[1].sqrt());
    for (((p, g), m), s) in value.iter_mut().zip(grad).zip(mean).zip(square) {
        let g = g * r.grad_scale;
        *m = b1 * *m + n1 * g;
        *s = b2 * *s + n2 * g * g;
        *p = *p * keep - rate * *m / (s.sqrt() * root + r.rule.eps);
    }
}
