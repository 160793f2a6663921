//! Launches of kernels/boxes_with_gt.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernel's BoxesWithGtParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    g: u32,
    p: u32,
}

pub(super) fn forward(out: &mut Tensor, proposals: &Tensor, gt_boxes: &Tensor) -> Result<()> {
    let dim = |n| dim_u32("boxes_with_gt", n);
    let params = Params { b: dim(out.dim(0))?, g: dim(gt_boxes.dim(1))?, p: dim(proposals.dim(1))? };
    let (device, grid) = (out.device().clone(), Grid::stride(out.numel() / 4, THREADS));
    let k = device.gpu().kernel("boxes_with_gt", DType::F32).out(out).arg(proposals).arg(gt_boxes).params(&params);
    // SAFETY: boxes_with_gt(out, proposals, gt_boxes, params): out [B,G+P,4], proposals [B,P,4], gt_boxes [B,G,4]
    // (checked in mod.rs).
    unsafe { k.launch(grid) }
}
