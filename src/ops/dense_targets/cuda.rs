//! Launches of kernels/dense_targets.cu.

use super::DenseTargets;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Most blocks along y that a grid may have; dense_targets loops over images.
const MAX_IMAGES: usize = 65_535;

/// Mirror of the kernel's DenseTargetsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    stds: [f32; 4],
    b: u32,
    n: u32,
    g: u32,
    background: i32,
}

/// `out.counts` holds zeros.
pub(super) fn forward(
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
    let params = Params { stds, b: dim(b)?, n: dim(n)?, g: dim(gt_boxes.dim(1))?, background };
    let k = device.gpu().kernel("dense_targets", DType::F32).out(&mut out.boxes).out(&mut out.classes);
    let k = k.out(&mut out.box_labels).out(&mut out.counts).arg(anchors).arg(assigned).arg(gt_boxes).arg(gt_labels);
    // SAFETY: dense_targets(boxes, classes, box_labels, counts, anchors, assigned, gt_boxes, gt_labels, params): boxes
    // [B,N,4], classes, box_labels and assigned [B,N], counts [B,2], anchors [N,4], gt_boxes [B,G,4], gt_labels [B,G]
    // (checked in mod.rs).
    unsafe { k.params(&params).launch(Grid::threads(n, THREADS).y(b.min(MAX_IMAGES))) }
}
