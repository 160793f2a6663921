//! Stochastic gradient descent with momentum on a list of parameters.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::ops::common::stochastic_rounding::{Draws, state_dtype};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "sgd", gradient: Gradient::No("it updates parameters after the backward pass") };

/// One parameter of a step.
pub struct SgdParam<'a> {
    /// The parameter.
    pub value: &'a mut Tensor,
    /// Its gradient.
    pub grad: &'a Tensor,
    /// Its velocity, zeros before the first step.
    pub momentum: &'a mut Tensor,
    /// L2 decay added to the gradient; 0 for exempt parameters.
    pub weight_decay: f32,
}

/// `g = grad_scale * grad + weight_decay * value; v = momentum * v + g; value -= lr * (nesterov ? g + momentum * v :
/// v)`.
///
/// A `grad_scale` that is not finite (`clip_scale` of a norm that is not) skips the step: nothing changes.
///
/// A velocity in bf16 is computed in f32, moves the value as such, and is then rounded stochastically, as the state of
/// [`adamw`](crate::ops::adamw::adamw) is.
///
/// Shapes: value, grad, momentum of a parameter alike, f32; all momenta f32, or all bf16; lr, grad_scale `[1]` f32, and
/// key i32 `[6]` ([`philox::key`](crate::philox::key)), needed for bf16 alone, read on the device.
/// Saves: nothing.
/// Gradient: none: it comes after the backward pass.
/// Cost: reads three, writes two values a parameter; memory-bound.
/// Errors: `Shape`, `Dtype`, naming the place in the list; `Value` for a velocity in bf16 without a key.
/// Reference: torch.optim.SGD without dampening (there the first velocity is the gradient: the same from zeros).
pub fn sgd(
    params: &mut [SgdParam<'_>],
    lr: &Tensor,
    grad_scale: &Tensor,
    momentum: f32,
    nesterov: bool,
    key: Option<&Tensor>,
) -> Result<()> {
    let _op = lr.device().enter("sgd");
    lr.expect_shape("sgd: lr", &[1])?;
    lr.expect_dtype("sgd: lr", DType::F32)?;
    grad_scale.expect_shape("sgd: grad_scale", &[1])?;
    grad_scale.expect_dtype("sgd: grad_scale", DType::F32)?;
    let largest = params.iter().map(|p| p.value.numel()).max().unwrap_or(0);
    let state = state_dtype("sgd", params.first().map(|p| &*p.momentum), largest, key)?;
    for (i, p) in params.iter().enumerate() {
        p.grad.expect_shape(&format!("sgd: gradient {i}"), p.value.shape())?;
        p.momentum.expect_shape(&format!("sgd: momentum {i}"), p.value.shape())?;
        for t in [&*p.value, p.grad] {
            t.expect_dtype(&format!("sgd: parameter {i}"), DType::F32)?;
        }
        p.momentum.expect_dtype(&format!("sgd: state {i}"), state)?;
    }
    on_device!(
        lr.device(),
        cpu => for (i, p) in params.iter_mut().enumerate() {
            let (lr, grad_scale) = (lr.f32s()[0], grad_scale.f32s()[0]);
            if !grad_scale.is_finite() {
                continue;
            }
            let rule = cpu::Rule { lr, grad_scale, momentum, nesterov, weight_decay: p.weight_decay };
            let (value, grad) = (p.value.f32s_mut(), p.grad.f32s());
            match key.filter(|_| state == DType::BF16) {
                None => cpu::step(value, grad, p.momentum.f32s_mut(), rule),
                Some(key) => cpu::step_bf16(value, grad, p.momentum.slice_mut(), rule, Draws::new(key.i32s(), i)),
            }
        },
        cuda => cuda::step(params, lr, grad_scale, momentum, nesterov, state, key),
    );
    Ok(())
}
