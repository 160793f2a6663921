//! Adam with decoupled weight decay on a list of parameters.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "adamw", gradient: Gradient::No("it updates parameters after the backward pass") };

/// One parameter of a step.
pub struct AdamWParam<'a> {
    /// The parameter.
    pub value: &'a mut Tensor,
    /// Its gradient.
    pub grad: &'a Tensor,
    /// Running mean of its gradient, zeros before the first step.
    pub mean: &'a mut Tensor,
    /// Running mean of its squared gradient, zeros before the first step.
    pub square: &'a mut Tensor,
    /// Decay of the value, times the learning rate; 0 for exempt parameters.
    pub weight_decay: f32,
}

/// What all parameters share.
#[derive(Clone, Copy, Debug)]
pub struct AdamWRule {
    /// Decay of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// Added to the root of the squares.
    pub eps: f32,
}

/// `1 - beta^step` for both betas: what makes the running means unbiased after `step` updates (from 1).
pub fn bias_correction(betas: [f64; 2], step: u64) -> [f32; 2] {
    betas.map(|beta| (1.0 - beta.powf(step as f64)) as f32)
}

/// `g = grad_scale * grad; m = β1 m + (1 - β1) g; s = β2 s + (1 - β2) g²;
/// value = value (1 - lr * decay) - lr / c1 * m / (√(s / c2) + eps)`, with c of [`bias_correction`].
///
/// A `grad_scale` that is not finite (`clip_scale` of a norm that is not) skips the step: nothing changes.
///
/// Shapes: value, grad, mean, square of a parameter alike, f32; lr, grad_scale `[1]`, correction `[2]` f32, read on the device.
/// Saves: nothing.
/// Gradient: none: it comes after the backward pass.
/// Cost: reads four, writes three values a parameter; memory-bound.
/// Errors: `Shape`, `Dtype`, naming the place in the list.
/// Reference: torch.optim.AdamW (Loshchilov and Hutter, arXiv 1711.05101).
pub fn adamw(
    params: &mut [AdamWParam<'_>],
    lr: &Tensor,
    grad_scale: &Tensor,
    correction: &Tensor,
    rule: AdamWRule,
) -> Result<()> {
    let _op = lr.device().enter("adamw");
    for (what, t, n) in
        [("adamw: lr", lr, 1), ("adamw: grad_scale", grad_scale, 1), ("adamw: correction", correction, 2)]
    {
        t.expect_shape(what, &[n])?;
        t.expect_dtype(what, DType::F32)?;
    }
    for (i, p) in params.iter().enumerate() {
        p.grad.expect_shape(&format!("adamw: gradient {i}"), p.value.shape())?;
        p.mean.expect_shape(&format!("adamw: mean {i}"), p.value.shape())?;
        p.square.expect_shape(&format!("adamw: square {i}"), p.value.shape())?;
        for t in [&*p.value, p.grad, &*p.mean, &*p.square] {
            t.expect_dtype(&format!("adamw: parameter {i}"), DType::F32)?;
        }
    }
    on_device!(
        lr.device(),
        cpu => for p in params {
            if !grad_scale.f32s()[0].is_finite() {
                continue;
            }
            let c = correction.f32s();
            let rates = cpu::Rates {
                lr: lr.f32s()[0],
                grad_scale: grad_scale.f32s()[0],
                correction: [c[0], c[1]],
                rule,
                weight_decay: p.weight_decay,
            };
            cpu::step(p.value.f32s_mut(), p.grad.f32s(), p.mean.f32s_mut(), p.square.f32s_mut(), rates);
        },
        cuda => cuda::step(params, lr, grad_scale, correction, rule),
    );
    Ok(())
}
