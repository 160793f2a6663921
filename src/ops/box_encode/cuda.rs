//! Launches of kernels/box_encode.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernel's BoxEncodeParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    stds: [f32; 4],
    b: u32,
    s: u32,
    g: u32,
}

pub(super) fn forward(y: &mut Tensor, rois: &Tensor, gt_boxes: &Tensor, gt: &Tensor, stds: [f32; 4]) -> Result<()> {
    let dim = |n| dim_u32("box_encode", n);
    let params = Params { stds, b: dim(gt.dim(0))?, s: dim(gt.dim(1))?, g: dim(gt_boxes.dim(1))? };
    let device = y.device().clone();
    let k = device.gpu().kernel("box_encode", DType::F32).out(y).arg(rois).arg(gt_boxes).arg(gt).params(&params);
    // SAFETY: box_encode(y, rois, gt_boxes, gt, params): y and rois [B,S,4], gt_boxes [B,G,4], gt [B,S] (checked in
    // mod.rs).
    unsafe { k.launch(Grid::stride(gt.numel(), THREADS)) }
}
