//! Stochastic gradient descent with momentum on a list of parameters.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
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

/// `g = grad_scale * grad + weight_decay * value; v = momentum * v + g; value -= lr * (nesterov ? g + momentum * v : v)`.
///
/// A `grad_scale` that is not finite (`clip_scale` of a norm that is not) skips the step: nothing changes.
///
/// Shapes: value, grad, momentum of a parameter alike, f32; lr, grad_scale `[1]` f32, read on the device.
/// Saves: nothing.
/// Gradient: none: it comes after the backward pass.
/// Cost: reads three, writes two values a parameter; memory-bound.
/// Errors: `Shape`, `Dtype`, naming the place in the list.
/// Reference: torch.optim.SGD without dampening (there the first velocity is the gradient: the same from zeros).
pub fn sgd(params: &mut [SgdParam<'_>], lr: &Tensor, grad_scale: &Tensor, momentum: f32, nesterov: bool) -> Result<()> {
    let _op = lr.device().enter("sgd");
    lr.expect_shape("sgd: lr", &[1])?;
    lr.expect_dtype("sgd: lr", DType::F32)?;
    grad_scale.expect_shape("sgd: grad_scale", &[1])?;
    grad_scale.expect_dtype("sgd: grad_scale", DType::F32)?;
    for (i, p) in params.iter().enumerate() {
        p.grad.expect_shape(&format!("sgd: gradient {i}"), p.value.shape())?;
        p.momentum.expect_shape(&format!("sgd: momentum {i}"), p.value.shape())?;
        for t in [&*p.value, p.grad, &*p.momentum] {
            t.expect_dtype(&format!("sgd: parameter {i}"), DType::F32)?;
        }
    }
    on_device!(
        lr.device(),
        cpu => for p in params {
            let (lr, grad_scale) = (lr.f32s()[0], grad_scale.f32s()[0]);
            if !grad_scale.is_finite() {
                continue;
            }
            let rule = cpu::Rule { lr, grad_scale, momentum, nesterov, weight_decay: p.weight_decay };
            cpu::step(p.value.f32s_mut(), p.grad.f32s(), p.momentum.f32s_mut(), rule);
        },
        cuda => cuda::step(params, lr, grad_scale, momentum, nesterov),
    );
    Ok(())
}
