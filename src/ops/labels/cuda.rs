//! Launches of kernels/labels.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernel's LabelsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    s: u32,
    g: u32,
    background: i32,
}

pub(super) fn forward(y: &mut Tensor, gt: &Tensor, idx: &Tensor, gt_labels: &Tensor, background: i32) -> Result<()> {
    let dim = |n| dim_u32("labels", n);
    let params = Params { b: dim(gt.dim(0))?, s: dim(gt.dim(1))?, g: dim(gt_labels.dim(1))?, background };
    let device = y.device().clone();
    let k = device.gpu().kernel("labels", DType::I32).out(y).arg(gt).arg(idx).arg(gt_labels).params(&params);
    // SAFETY: labels(y, gt, idx, gt_labels, params): y, gt and idx [B,S], gt_labels [B,G] (checked in mod.rs).
    unsafe { k.launch(Grid::stride(gt.numel(), THREADS)) }
}
