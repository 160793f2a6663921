//! Launches of kernels/positives.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernel's PositivesParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    s: u32,
    p: u32,
    first: u32,
}

pub(super) fn forward(out: &mut Tensor, gt: &Tensor, s: usize, first: usize, p: usize) -> Result<()> {
    let dim = |n| dim_u32("positives", n);
    let params = Params { b: dim(out.dim(0))?, s: dim(s)?, p: dim(p)?, first: dim(first)? };
    let (device, grid) = (out.device().clone(), Grid::stride(out.numel(), THREADS));
    let k = device.gpu().kernel("positives", DType::I32).out(out).arg(gt).params(&params);
    // SAFETY: positives(out, gt, params): out [B,P], gt [B,S], first + P at most S (checked in mod.rs).
    unsafe { k.launch(grid) }
}
