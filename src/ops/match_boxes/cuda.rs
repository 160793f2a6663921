//! Launches of kernels/match_boxes.cu.

use super::Matcher;
use crate::device::Device;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Most blocks along y that a grid may have; the kernels loop over images.
const MAX_IMAGES: usize = 65_535;

/// Mirror of the kernels' MatchBoxesParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    n: u32,
    g: u32,
    box_rows: u32,
    pos_iou: f32,
    neg_iou: f32,
    min_pos_iou: f32,
}

/// Zeros for the best IoU of each ground truth, if low-quality matches ask for it.
pub(super) fn workspace(device: &Device, b: usize, g: usize, m: Matcher) -> Result<Tensor> {
    Tensor::zeros(device, &[b, if m.low_quality { g } else { 0 }], DType::I32)
}

pub(super) fn forward(
    assigned: &mut Tensor,
    best: &mut Tensor,
    boxes: &Tensor,
    valid: Option<&Tensor>,
    gt_boxes: &Tensor,
    gt_count: &Tensor,
    m: Matcher,
) -> Result<()> {
    let dim = |n| dim_u32("match_boxes", n);
    let (device, b, n) = (assigned.device().clone(), assigned.dim(0), assigned.dim(1));
    let params = Params {
        b: dim(b)?,
        n: dim(n)?,
        g: dim(gt_boxes.dim(1))?,
        box_rows: if boxes.shape().len() == 2 { 0 } else { dim(n)? },
        pos_iou: m.pos_iou,
        neg_iou: m.neg_iou,
        min_pos_iou: m.min_pos_iou,
    };
    let grid = Grid::threads(n, THREADS).y(b.min(MAX_IMAGES));
    let valid_of = |dtype| valid.filter(|v| v.dtype() == dtype);
    let k = device.gpu().kernel("match_boxes", DType::F32);
    let k = k.out(assigned).out_opt(m.low_quality.then_some(&mut *best));
    let k = k.arg(boxes).opt(valid_of(DType::U8)).opt(valid_of(DType::I32)).arg(gt_boxes).arg(gt_count).params(&params);
    // SAFETY: match_boxes(assigned, best, boxes, valid_u8, valid_i32, gt, count, params): assigned and valid [B,N],
    // best [B,G] or null (`workspace`), boxes [N,4] or [B,N,4] as box_rows says, gt [B,G,4], count [B] (checked in
    // mod.rs).
    unsafe { k.launch(grid)? };
    if !m.low_quality {
        return Ok(());
    }
    let k = device.gpu().kernel("match_boxes_low_quality", DType::F32);
    let k = k.out(assigned).arg(best).arg(boxes).arg(gt_boxes).arg(gt_count).params(&params);
    // SAFETY: match_boxes_low_quality(assigned, best, boxes, gt, count, params): as above, best [B,G].
    unsafe { k.launch(grid) }
}
