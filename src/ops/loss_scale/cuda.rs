//! Launches of kernels/loss_scale.cu.

use super::LossScaleRule;
use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Mirror of the kernel's LossScaleParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    beta: [f64; 2],
    growth: f32,
    backoff: f32,
    interval: f32,
    min: f32,
    max: f32,
    max_norm: f32,
}

pub(super) fn step(
    grad_scale: &mut Tensor,
    norm: &mut Tensor,
    state: &mut Tensor,
    correction: &mut Tensor,
    betas: [f64; 2],
    max_norm: f32,
    rule: &LossScaleRule,
) -> Result<()> {
    let device = norm.device().clone();
    let LossScaleRule { growth, backoff, interval, min, max } = *rule;
    let params = Params { beta: betas, growth, backoff, interval: interval as f32, min, max, max_norm };
    let k = device.gpu().kernel("loss_scale", DType::F32).out(grad_scale).out(norm).out(state).out(correction);
    let k = k.params(&params);
    // SAFETY: loss_scale(grad_scale, norm, state, correction, params): of one, one, three and two elements (checked in
    // mod.rs).
    unsafe { k.launch(Grid::blocks(1, 32)) }
}
