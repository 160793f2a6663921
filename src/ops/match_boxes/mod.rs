//! Assigns a ground truth, or none, to each box.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "match_boxes", gradient: Gradient::No("assignments are constants of the losses") };

/// Assignment of boxes that are not valid.
pub const INVALID: i32 = -2;
/// Assignment of boxes that are neither positive nor negative.
pub const IGNORED: i32 = -1;

/// Thresholds of mmdetection's MaxIoUAssigner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matcher {
    /// A box with at least this IoU is positive.
    pub pos_iou: f32,
    /// A box below this IoU is negative.
    pub neg_iou: f32,
    /// Smallest IoU of a low-quality match.
    pub min_pos_iou: f32,
    /// If true, each ground truth also takes the boxes with which it has its largest IoU; later ground truths override
    /// earlier ones.
    pub low_quality: bool,
}

/// Returns the assignment of each box: `g + 1` for ground truth `g`, 0 for negatives, -1 for boxes between the
/// thresholds, -2 for boxes that are not valid. The IoU has no "+1" in the sides, and the union is at least 1e-6. The
/// first ground truth wins among equal IoUs. Without ground truth all boxes are negative. NaN boxes are negative.
///
/// Shapes: boxes `[N,4]` (shared by the images) or `[B,N,4]`, valid `[B,N]` u8 or i32 (above 0 = valid), gt_boxes
/// `[B,G,4]` f32, gt_count `[B]` i32; result `[B,N]` i32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: B·N·G IoUs at most (blocks that a ground truth does not touch are skipped), and on a GPU the same number once
/// more for low-quality matches; no IoU matrix in memory.
/// Errors: `Shape`, `Dtype`.
/// Reference: mmdetection's MaxIoUAssigner (Ren et al. 2015, section 3.1.2).
pub fn match_boxes(
    boxes: &Tensor,
    valid: Option<&Tensor>,
    gt_boxes: &Tensor,
    gt_count: &Tensor,
    matcher: Matcher,
) -> Result<Tensor> {
    let device = gt_boxes.device();
    let _op = device.enter("match_boxes");
    let [b, g, _] = gt_boxes.dims("match_boxes: gt_boxes")?;
    gt_boxes.expect_shape("match_boxes: gt_boxes", &[b, g, 4])?;
    gt_boxes.expect_dtype("match_boxes: gt_boxes", DType::F32)?;
    gt_count.expect_shape("match_boxes: gt_count", &[b])?;
    gt_count.expect_dtype("match_boxes: gt_count", DType::I32)?;
    boxes.expect_dtype("match_boxes: boxes", DType::F32)?;
    let n = match *boxes.shape() {
        [n, 4] => n,
        [bb, n, 4] if bb == b => n,
        _ => {
            return Err(Error::Shape {
                what: "match_boxes: boxes".into(),
                want: format!("[N,4] or [{b},N,4]"),
                got: boxes.shape().to_vec(),
            });
        }
    };
    if let Some(v) = valid {
        v.expect_shape("match_boxes: valid", &[b, n])?;
        if v.dtype() != DType::U8 {
            v.expect_dtype("match_boxes: valid", DType::I32)?;
        }
    }
    let mut assigned = Tensor::empty(device, &[b, n], DType::I32)?;
    let mut best = if device.runs_kernels() {
        cuda::workspace(device, b, g, matcher)?
    } else {
        Tensor::empty(device, &[b, cpu::tasks(n), g], DType::F32)?
    };
    let shared = boxes.shape().len() == 2;
    on_device!(
        device,
        cpu => {
            let (gt, count) = (gt_boxes.f32s(), gt_count.i32s());
            let problem = cpu::Problem { boxes: boxes.f32s(), shared, gt, count, n, g, matcher };
            cpu::forward(assigned.i32s_mut(), best.f32s_mut(), valid, &problem);
        },
        cuda => cuda::forward(&mut assigned, &mut best, boxes, valid, gt_boxes, gt_count, matcher),
    );
    Ok(assigned)
}
