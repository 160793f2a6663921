//! Adam with decoupled weight decay on a list of parameters.
//!
//! State may be stored in bf16, never in f16: squares of gradients underflow there.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::ops::common::stochastic_rounding::{Draws, state_dtype};
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
    /// Weight decay (multiplied by the learning rate); 0 for exempt parameters.
    pub weight_decay: f32,
}

/// The hyperparameters that all parameters share.
#[derive(Clone, Copy, Debug)]
pub struct AdamWRule {
    /// Decay of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// Added to the square root of the second moment.
    pub eps: f32,
}

/// `g = grad_scale * grad; m = β1 m + (1 - β1) g; s = β2 s + (1 - β2) g²; value = value (1 - lr * decay) - lr / c1 * m
/// / (√(s / c2) + eps)`, with c from [`bias_correction`](super::common::bias_correction::bias_correction).
///
/// A `grad_scale` that is not finite (`clip_scale` returns one for a norm that is not finite) skips the step: nothing
/// changes.
///
/// State stored in bf16 is updated in f32, used in f32 to update the value, and then rounded stochastically. With
/// rounding to nearest, `s` would never fall: with β2 = 0.999 it falls by at most a thousandth of itself a step, which
/// is less than half a unit of bf16. The random numbers depend on the key, the parameter's place in the list and the
/// element. A state that would round to infinity becomes the largest bf16.
///
/// Shapes: value, grad, mean, square of a parameter alike, f32; all means and squares f32, or all bf16; lr, grad_scale
/// `[1]`, correction `[2]` f32, and key i32 `[6]` ([`philox::key`](crate::philox::key)), needed for bf16 alone, read on
/// the device.
/// Saves: nothing.
/// Gradient: none: the op follows the backward pass.
/// Cost: reads four and writes three values a parameter; memory-bound.
/// Errors: `Shape`, `Dtype`, naming the place in the list; `Value` for state in bf16 without a key.
/// Reference: torch.optim.AdamW (Loshchilov and Hutter, arXiv 1711.05101).
pub fn adamw(
    params: &mut [AdamWParam<'_>],
    lr: &Tensor,
    grad_scale: &Tensor,
    correction: &Tensor,
    rule: AdamWRule,
    key: Option<&Tensor>,
) -> Result<()> {
    let _op = lr.device().enter("adamw");
    for (what, t, n) in
        [("adamw: lr", lr, 1), ("adamw: grad_scale", grad_scale, 1), ("adamw: correction", correction, 2)]
    {
        t.expect_shape(what, &[n])?;
        t.expect_dtype(what, DType::F32)?;
    }
    let largest = params.iter().map(|p| p.value.numel()).max().unwrap_or(0);
    let state = state_dtype("adamw", params.first().map(|p| &*p.mean), largest, key)?;
    for (i, p) in params.iter().enumerate() {
        p.grad.expect_shape(&format!("adamw: gradient {i}"), p.value.shape())?;
        p.mean.expect_shape(&format!("adamw: mean {i}"), p.value.shape())?;
        p.square.expect_shape(&format!("adamw: square {i}"), p.value.shape())?;
        for t in [&*p.value, p.grad] {
            t.expect_dtype(&format!("adamw: parameter {i}"), DType::F32)?;
        }
        for t in [&*p.mean, &*p.square] {
            t.expect_dtype(&format!("adamw: state {i}"), state)?;
        }
    }
    on_device!(
        lr.device(),
        cpu => for (i, p) in params.iter_mut().enumerate() {
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
            let (value, grad) = (p.value.f32s_mut(), p.grad.f32s());
            match key.filter(|_| state == DType::BF16) {
                None => cpu::step(value, grad, p.mean.f32s_mut(), p.square.f32s_mut(), rates),
                Some(key) => {
                    let draws = Draws::new(key.i32s(), i);
                    cpu::step_bf16(value, grad, p.mean.slice_mut(), p.square.slice_mut(), rates, draws);
                }
            }
        },
        cuda => cuda::step(params, lr, grad_scale, correction, rule, state, key),
    );
    Ok(())
}
