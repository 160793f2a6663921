//! Launches of kernels/box_encode.cu.

use super::DenseTargets;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Most blocks along y that a grid may have; dense_targets loops over images.
const MAX_IMAGES: usize = 65_535;

/// Mirror of the kernel's BoxEncodeParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    stds: [f32; 4],
    b: u32,
    s: u32,
    g: u32,
}

/// Mirror of the kernel's LabelsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct LabelParams {
    b: u32,
    s: u32,
    g: u32,
    background: i32,
}

pub(super) fn forward(y: &mut Tensor, rois: &Tensor, gt_boxes: &Tensor, gt: &Tensor, stds: [f32; 4]) -> Result<()> {
    let dim = |n| dim_u32("box_encode", n);
    let params = Params { stds, b: dim(gt.dim(0))?, s: dim(gt.dim(1))?, g: dim(gt_boxes.dim(1))? };
    let device = y.device().clone();
    let k = device.gpu().kernel("box_encode", DType::F32).out(y).arg(rois).arg(gt_boxes).arg(gt).params(&params);
    // SAFETY: box_encode(y, rois, gt_boxes, gt, params): y and rois [B,S,4], gt_boxes [B,G,4], gt [B,S] (checked in mod.rs).
    unsafe { k.launch(Grid::stride(gt.numel(), THREADS)) }
}

pub(super) fn labels(y: &mut Tensor, gt: &Tensor, idx: &Tensor, gt_labels: &Tensor, background: i32) -> Result<()> {
    let dim = |n| dim_u32("labels", n);
    let params = LabelParams { b: dim(gt.dim(0))?, s: dim(gt.dim(1))?, g: dim(gt_labels.dim(1))?, background };
    let device = y.device().clone();
    let k = device.gpu().kernel("labels", DType::I32).out(y).arg(gt).arg(idx).arg(gt_labels).params(&params);
    // SAFETY: labels(y, gt, idx, gt_labels, params): y, gt and idx [B,S], gt_labels [B,G] (checked in mod.rs).
    unsafe { k.launch(Grid::stride(gt.numel(), THREADS)) }
}

/// Mirror of the kernel's DenseTargetsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct DenseParams {
    stds: [f32; 4],
    b: u32,
    n: u32,
    g: u32,
    background: i32,
}

/// `out.counts` holds zeros.
pub(super) fn dense_targets(
    out: &mut DenseTargets,
    anchors: &Tensor,
    assigned: &Tensor,
    gt_boxes: &Tensor,
    gt_labels: &Tensor,
    background: i32,
    stds: [f32; 4],
) -> Result<()> {
    let dim = |n| dim_u32("dense_targets", n);
    let (device, b, n) = (assigned.device().clone(), assigned.dim(0), assigned.dim(1));
    let params = DenseParams { stds, b: dim(b)?, n: dim(n)?, g: dim(gt_boxes.dim(1))?, background };
    let k = device.gpu().kernel("dense_targets", DType::F32).out(&mut out.boxes).out(&mut out.classes);
    let k = k.out(&mut out.box_labels).out(&mut out.counts).arg(anchors).arg(assigned).arg(gt_boxes).arg(gt_labels);
    // SAFETY: dense_targets(boxes, classes, box_labels, counts, anchors, assigned, gt_boxes, gt_labels, params): boxes [B,N,4],
    // classes, box_labels and assigned [B,N], counts [B,2], anchors [N,4], gt_boxes [B,G,4], gt_labels [B,G] (checked in mod.rs).
    unsafe { k.params(&params).launch(Grid::threads(n, THREADS).y(b.min(MAX_IMAGES))) }
}
