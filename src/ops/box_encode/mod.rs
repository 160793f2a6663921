//! Regression targets of sampled boxes.

pub(in crate::ops) mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "box_encode", gradient: Gradient::No("targets are constants of the losses") };

/// `((gx - px)/pw, (gy - py)/ph, ln(gw/pw), ln(gh/ph)) / stds` of the matched ground truth `g` relative to the box `p`;
/// zeros where `gt` names no ground truth (-1 = not positive).
///
/// Shapes: rois `[B,S,4]`, gt_boxes `[B,G,4]` f32; gt `[B,S]` i32; y `[B,S,4]` f32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads 9·B·S, writes 4·B·S; two logarithms a positive.
/// Errors: `Shape` if the batches or row counts differ.
/// Reference: Girshick et al. 2014, appendix C; the inverse of `box_decode` where nothing is clamped.
pub fn box_encode(rois: &Tensor, gt_boxes: &Tensor, gt: &Tensor, stds: [f32; 4]) -> Result<Tensor> {
    let _op = rois.device().enter("box_encode");
    let [b, s, _] = rois.dims("box_encode: rois")?;
    let [_, g, _] = gt_boxes.dims("box_encode: gt_boxes")?;
    rois.expect_shape("box_encode: rois", &[b, s, 4])?;
    gt_boxes.expect_shape("box_encode: gt_boxes", &[b, g, 4])?;
    gt.expect_shape("box_encode: gt", &[b, s])?;
    rois.expect_dtype("box_encode: rois", DType::F32)?;
    gt_boxes.expect_dtype("box_encode: gt_boxes", DType::F32)?;
    gt.expect_dtype("box_encode: gt", DType::I32)?;
    let mut y = Tensor::empty(rois.device(), &[b, s, 4], DType::F32)?;
    on_device!(
        rois.device(),
        cpu => cpu::forward(y.f32s_mut(), rois.f32s(), gt_boxes.f32s(), gt.i32s(), s, g, stds),
        cuda => cuda::forward(&mut y, rois, gt_boxes, gt, stds),
    );
    Ok(y)
}
