//! Launches of kernels/mask_targets.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Warps of a block, one a row of bins.
const ROWS: usize = 4;

/// Mirror of the kernel's MaskTargetsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    per_image: u32,
    runs: u32,
    ends: u32,
    width: u32,
    size: u32,
}

pub(super) fn mask_targets(
    target: &mut Tensor,
    rois: &Tensor,
    gt: &Tensor,
    runs: &Tensor,
    offsets: &Tensor,
    sizes: &Tensor,
    width_px: usize,
) -> Result<()> {
    let (device, size) = (target.device().clone(), target.dim(3));
    let dim = |n| dim_u32("mask_targets", n);
    let params = Params {
        per_image: dim(rois.dim(1))?,
        runs: dim(runs.dim(1))?,
        ends: dim(offsets.dim(1))?,
        width: dim(width_px)?,
        size: dim(size)?,
    };
    let k = device.gpu().kernel("mask_targets", DType::I32).out(target).arg(rois).arg(gt).arg(runs).arg(offsets);
    let k = k.arg(sizes).params(&params);
    // SAFETY: mask_targets(target, rois, gt, runs, offsets, sizes, params): target [B,P,size,size], rois [B,P,4], gt
    // [B,P], runs [B,params.runs], offsets [B,params.ends], sizes [B,4] (checked in mod.rs); offsets are cut to the
    // runs by the kernel.
    unsafe { k.launch(Grid::blocks(gt.numel(), 32 * ROWS as u32).y(size.div_ceil(ROWS))) }
}
