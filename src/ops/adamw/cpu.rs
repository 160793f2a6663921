//! CPU kernels of AdamW.

use half::bf16;
use rayon::prelude::*;

use super::AdamWRule;
use crate::ops::common::stochastic_rounding::{Draws, TILE, round};
use crate::tensor::elementwise::CHUNK;

#[derive(Clone, Copy)]
pub(super) struct Rates {
    pub lr: f32,
    pub grad_scale: f32,
    pub correction: [f32; 2],
    pub rule: AdamWRule,
    pub weight_decay: f32,
}

/// The constants of an update, the same for all elements.
#[derive(Clone, Copy)]
struct Update {
    grad_scale: f32,
    decay: [f32; 2],
    rest: [f32; 2],
    keep: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

impl Update {
    fn new(r: Rates) -> Update {
        Update {
            grad_scale: r.grad_scale,
            decay: r.rule.betas.map(|b| b as f32),
            rest: r.rule.betas.map(|b| (1.0 - b) as f32),
            keep: 1.0 - r.lr * r.weight_decay,
            rate: r.lr / r.correction[0],
            root: 1.0 / r.correction[1].sqrt(),
            eps: r.rule.eps,
        }
    }

    /// Moves `p`; the new means.
    #[inline(always)]
    fn element(&self, p: &mut f32, g: f32, m: f32, s: f32) -> (f32, f32) {
        let g = g * self.grad_scale;
        let m = self.decay[0] * m + self.rest[0] * g;
        let s = self.decay[1] * s + self.rest[1] * g * g;
        *p = *p * self.keep - self.rate * m / (s.sqrt() * self.root + self.eps);
        (m, s)
    }
}

pub(super) fn step(value: &mut [f32], grad: &[f32], mean: &mut [f32], square: &mut [f32], rates: Rates) {
    let update = Update::new(rates);
    over_chunks(value, grad, mean, square, |_, value, grad, mean, square| {
        for (((p, g), m), s) in value.iter_mut().zip(grad).zip(mean).zip(square) {
            (*m, *s) = update.element(p, *g, *m, *s);
        }
    });
}

/// With state in bf16: the low half of an element's random number rounds its mean, the high half its square.
pub(super) fn step_bf16(
    value: &mut [f32],
    grad: &[f32],
    mean: &mut [bf16],
    square: &mut [bf16],
    rates: Rates,
    draws: Draws,
) {
    let update = Update::new(rates);
    over_chunks(value, grad, mean, square, |first, value, grad, mean, square| {
        let state = mean.chunks_mut(TILE).zip(square.chunks_mut(TILE));
        let tiles = value.chunks_mut(TILE).zip(grad.chunks(TILE)).zip(state).enumerate();
        for (i, ((value, grad), (mean, square))) in tiles {
            let random = draws.tile(first + i * TILE);
            let state = mean.iter_mut().zip(square).zip(random);
            for ((p, g), ((m, s), random)) in value.iter_mut().zip(grad).zip(state) {
                let (new_mean, new_square) = update.element(p, *g, m.to_f32(), s.to_f32());
                (*m, *s) = (round(new_mean, random as u16), round(new_square, (random >> 16) as u16));
            }
        }
    });
}

/// Calls `run` with each chunk and its first element.
fn over_chunks<S: Send>(
    value: &mut [f32],
    grad: &[f32],
    mean: &mut [S],
    square: &mut [S],
    run: impl Fn(usize, &mut [f32], &[f32], &mut [S], &mut [S]) + Sync,
) {
    if value.len() <= CHUNK {
        return run(0, value, grad, mean, square);
    }
    value
        .par_chunks_mut(CHUNK)
        .zip(grad.par_chunks(CHUNK))
        .zip(mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK)))
        .enumerate()
        .for_each(|(i, ((value, grad), (mean, square)))| run(i * CHUNK, value, grad, mean, square));
}
