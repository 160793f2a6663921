//! Boxes of candidates: ground truth, then proposals.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "boxes_with_gt", gradient: Gradient::No("proposals are constants of the second stage") };

/// Boxes of candidates `[ground truth ; proposals]`.
///
/// Shapes: proposals `[B,P,4]`, gt_boxes `[B,G,4]`, result `[B,G+P,4]`, all f32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: one pass over inputs and outputs; memory-bound.
/// Errors: `Shape`, `Dtype`.
/// Reference: mmdetection's `BaseSampler.sample` with `add_gt_as_proposals`.
pub fn boxes_with_gt(proposals: &Tensor, gt_boxes: &Tensor) -> Result<Tensor> {
    let device = proposals.device();
    let _op = device.enter("boxes_with_gt");
    let [b, p, _] = proposals.dims("boxes_with_gt: proposals")?;
    let [_, g, _] = gt_boxes.dims("boxes_with_gt: gt_boxes")?;
    proposals.expect_dtype("boxes_with_gt: proposals", DType::F32)?;
    gt_boxes.expect_dtype("boxes_with_gt: gt_boxes", DType::F32)?;
    proposals.expect_shape("boxes_with_gt: proposals", &[b, p, 4])?;
    gt_boxes.expect_shape("boxes_with_gt: gt_boxes", &[b, g, 4])?;
    let mut out = Tensor::empty(device, &[b, g + p, 4], DType::F32)?;
    on_device!(
        device,
        cpu => cpu::forward(out.f32s_mut(), proposals.f32s(), gt_boxes.f32s(), g, p),
        cuda => cuda::forward(&mut out, proposals, gt_boxes),
    );
    Ok(out)
}
