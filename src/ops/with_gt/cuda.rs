//! Launches of kernels/with_gt.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernel's WithGtParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    g: u32,
    p: u32,
}

pub(super) fn forward(out: &mut Tensor, assigned: &Tensor, gt_count: &Tensor, g: usize) -> Result<()> {
    let dim = |n| dim_u32("with_gt", n);
    let params = Params { b: dim(assigned.dim(0))?, g: dim(g)?, p: dim(assigned.dim(1))? };
    let (device, grid) = (out.device().clone(), Grid::stride(out.numel(), THREADS));
    let k = device.gpu().kernel("with_gt", DType::I32).out(out).arg(assigned).arg(gt_count).params(&params);
    // SAFETY: with_gt(out, assigned, gt_count, params): out [B,G+P], assigned [B,P], gt_count [B] (checked in mod.rs).
    unsafe { k.launch(grid) }
}
