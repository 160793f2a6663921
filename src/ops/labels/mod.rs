//! The class of each sampled box.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "labels", gradient: Gradient::No("targets are constants of the losses") };

/// Class of each sample: its ground truth's for positives, `background` for negatives, -1 for padding (`idx` -1).
///
/// Shapes: gt `[B,S]` (-1 = not positive), idx `[B,S]`, gt_labels `[B,G]`, y `[B,S]`, all i32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads 2·B·S, writes B·S.
/// Errors: `Shape` if the batches or row counts differ.
/// Reference: mmdetection's `BBoxHead.get_targets`.
pub fn labels(gt: &Tensor, idx: &Tensor, gt_labels: &Tensor, background: i32) -> Result<Tensor> {
    let _op = gt.device().enter("labels");
    let [b, s] = gt.dims("labels: gt")?;
    let [_, g] = gt_labels.dims("labels: gt_labels")?;
    idx.expect_shape("labels: idx", &[b, s])?;
    gt_labels.expect_shape("labels: gt_labels", &[b, g])?;
    for (what, t) in [("gt", gt), ("idx", idx), ("gt_labels", gt_labels)] {
        t.expect_dtype(&format!("labels: {what}"), DType::I32)?;
    }
    let mut y = Tensor::empty(gt.device(), &[b, s], DType::I32)?;
    on_device!(
        gt.device(),
        cpu => cpu::forward(y.i32s_mut(), gt.i32s(), idx.i32s(), gt_labels.i32s(), s, g, background),
        cuda => cuda::forward(&mut y, gt, idx, gt_labels, background),
    );
    Ok(y)
}
