//! Launches of kernels/adamw.cu.

use super::{AdamWParam, AdamWRule};
use crate::error::Result;
use crate::ops::common::multi_tensor::{Entry, launches};
use crate::philox::Purpose;
use crate::tensor::{DType, Tensor};

/// Mirror of the kernel's AdamWParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    beta: [f32; 2],
    rest: [f32; 2],
    eps: f32,
    purpose: u32,
}

pub(super) fn step(
    params: &mut [AdamWParam<'_>],
    lr: &Tensor,
    grad_scale: &Tensor,
    correction: &Tensor,
    rule: AdamWRule,
    state: DType,
    key: Option<&Tensor>,
) -> Result<()> {
    let device = lr.device().clone();
    let shared = Params {
        beta: rule.betas.map(|b| b as f32),
        rest: rule.betas.map(|b| (1.0 - b) as f32),
        eps: rule.eps,
        purpose: Purpose::StateRounding as u32,
    };
    let entries = params.iter_mut().map(|p| {
        let entry = Entry::new(p.value.numel(), p.weight_decay).out(&mut *p.value).arg(p.grad);
        entry.out(&mut *p.mean).out(&mut *p.square)
    });
    launches(entries, |list, grid| {
        let k = device.gpu().kernel("adamw", state).arg(lr).arg(grad_scale).arg(correction);
        let k = k.opt(key).params(list).params(&shared);
        // SAFETY: adamw(lr, grad_scale, correction, key, list, params): lists of value and grad in f32, mean and square
        // of the kernel's type, of one size each, lr and grad_scale of one element, correction of two, key of six, or
        // null for f32 (checked in mod.rs).
        unsafe { k.launch(grid) }
    })
}
