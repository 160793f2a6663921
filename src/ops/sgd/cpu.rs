//! CPU kernel of SGD.

use rayon::prelude::*;

use crate::ops::elementwise::CHUNK;

#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub lr: f32,
    pub grad_scale: f32,
    pub momentum: f32,
    pub nesterov: bool,
    pub weight_decay: f32,
}

pub(super) fn step(value: &mut [f32], grad: &[f32], velocity: &mut [f32], rule: Rule) {
    let run = if rule.nesterov { chunk::<true> } else { chunk::<false> };
    if value.len() <= CHUNK {
        return run(value, grad, velocity, rule);
    }
    value
        .par_chunks_mut(CHUNK)
        .zip(grad.par_chunks(CHUNK))
        .zip(velocity.par_chunks_mut(CHUNK))
        .for_each(|((value, grad), velocity)| run(value, grad, velocity, rule));
}

fn chunk<const NESTEROV: bool>(value: &mut [f32], grad: &[f32], velocity: &mut [f32], r: Rule) {
    for ((p, g), v) in value.iter_mut().zip(grad).zip(velocity) {
        let g = g * r.grad_scale + r.weight_decay * *p;
        *v = r.momentum * *v + g;
        *p -= r.lr * if NESTEROV { g + r.momentum * *v } else { *v };
    }
}
