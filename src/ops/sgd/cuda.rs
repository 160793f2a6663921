//! Launches of kernels/sgd.cu.

use super::SgdParam;
use crate::error::Result;
use crate::ops::multi_tensor::{Entry, launches};
use crate::tensor::{DType, Tensor};

/// Mirror of the kernel's SgdParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    momentum: f32,
    nesterov: u32,
}

pub(super) fn step(
    params: &mut [SgdParam<'_>],
    lr: &Tensor,
    grad_scale: &Tensor,
    momentum: f32,
    nesterov: bool,
) -> Result<()> {
    let device = lr.device().clone();
    let entries = params
        .iter_mut()
        .map(|p| Entry::new(p.value.numel(), p.weight_decay).out(&mut *p.value).arg(p.grad).out(&mut *p.momentum));
    launches(entries, |list, grid| {
        let shared = Params { momentum, nesterov: u32::from(nesterov) };
        let k = device.gpu().kernel("sgd", DType::F32).arg(lr).arg(grad_scale).params(list).params(&shared);
        // SAFETY: sgd(lr, grad_scale, list, params): lists of value, grad and velocity, of one size each (checked in mod.rs),
        // lr and grad_scale of one element.
        unsafe { k.launch(grid) }
    })
}
