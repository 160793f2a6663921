//! Launches of kernels/sgd.cu.

use super::SgdParam;
use crate::error::Result;
use crate::ops::common::multi_tensor::{Entry, launches};
use crate::philox::Purpose;
use crate::tensor::{DType, Tensor};

/// Mirror of the kernel's SgdParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    momentum: f32,
    nesterov: u32,
    purpose: u32,
}

pub(super) fn step(
    params: &mut [SgdParam<'_>],
    lr: &Tensor,
    grad_scale: &Tensor,
    momentum: f32,
    nesterov: bool,
    state: DType,
    key: Option<&Tensor>,
) -> Result<()> {
    let device = lr.device().clone();
    let entries = params
        .iter_mut()
        .map(|p| Entry::new(p.value.numel(), p.weight_decay).out(&mut *p.value).arg(p.grad).out(&mut *p.momentum));
    launches(entries, |list, grid| {
        let shared = Params { momentum, nesterov: u32::from(nesterov), purpose: Purpose::StateRounding as u32 };
        let k = device.gpu().kernel("sgd", state).arg(lr).arg(grad_scale).opt(key).params(list).params(&shared);
        // SAFETY: sgd(lr, grad_scale, key, list, params): lists of value and grad in f32, velocity of the kernel's
        // type, of one size each, lr and grad_scale of one element, key of six, or null for f32 (checked in mod.rs).
        unsafe { k.launch(grid) }
    })
}
