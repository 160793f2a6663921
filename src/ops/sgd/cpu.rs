//! CPU kernels of SGD.

use half::bf16;
use rayon::prelude::*;

use crate::ops::common::stochastic_rounding::{Draws, TILE, round};
use crate::tensor::elementwise::CHUNK;

#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub lr: f32,
    pub grad_scale: f32,
    pub momentum: f32,
    pub nesterov: bool,
    pub weight_decay: f32,
}

impl Rule {
    /// Moves `p`; the new velocity.
    #[inline(always)]
    fn element<const NESTEROV: bool>(&self, p: &mut f32, g: f32, v: f32) -> f32 {
        let g = g * self.grad_scale + self.weight_decay * *p;
        let v = self.momentum * v + g;
        *p -= self.lr * if NESTEROV { g + self.momentum * v } else { v };
        v
    }
}

pub(super) fn step(value: &mut [f32], grad: &[f32], velocity: &mut [f32], rule: Rule) {
    let run = if rule.nesterov { chunk::<true> } else { chunk::<false> };
    over_chunks(value, grad, velocity, |_, value, grad, velocity| run(value, grad, velocity, rule));
}

fn chunk<const NESTEROV: bool>(value: &mut [f32], grad: &[f32], velocity: &mut [f32], r: Rule) {
    for ((p, g), v) in value.iter_mut().zip(grad).zip(velocity) {
        *v = r.element::<NESTEROV>(p, *g, *v);
    }
}

/// With the velocity in bf16: the low half of an element's random number rounds it.
pub(super) fn step_bf16(value: &mut [f32], grad: &[f32], velocity: &mut [bf16], rule: Rule, draws: Draws) {
    let run = if rule.nesterov { chunk_bf16::<true> } else { chunk_bf16::<false> };
    over_chunks(value, grad, velocity, |first, value, grad, velocity| run(value, grad, velocity, rule, draws, first));
}

fn chunk_bf16<const NESTEROV: bool>(
    value: &mut [f32],
    grad: &[f32],
    velocity: &mut [bf16],
    r: Rule,
    draws: Draws,
    first: usize,
) {
    let tiles = value.chunks_mut(TILE).zip(grad.chunks(TILE)).zip(velocity.chunks_mut(TILE));
    for (i, ((value, grad), velocity)) in tiles.enumerate() {
        let random = draws.tile(first + i * TILE);
        for (((p, g), v), random) in value.iter_mut().zip(grad).zip(velocity).zip(random) {
            *v = round(r.element::<NESTEROV>(p, *g, v.to_f32()), random as u16);
        }
    }
}

/// Calls `run` with each chunk and its first element.
fn over_chunks<S: Send>(
    value: &mut [f32],
    grad: &[f32],
    velocity: &mut [S],
    run: impl Fn(usize, &mut [f32], &[f32], &mut [S]) + Sync,
) {
    if value.len() <= CHUNK {
        return run(0, value, grad, velocity);
    }
    value
        .par_chunks_mut(CHUNK)
        .zip(grad.par_chunks(CHUNK))
        .zip(velocity.par_chunks_mut(CHUNK))
        .enumerate()
        .for_each(|(i, ((value, grad), velocity))| run(i * CHUNK, value, grad, velocity));
}
