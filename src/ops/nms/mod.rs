//! Non-maximum suppression, within groups (levels or classes), for a batch.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "nms", gradient: Gradient::No("chooses indices") };

/// From this many boxes on mmcv runs group by group (its `split_thr`).
const SPLIT_FROM: usize = 10_000;

/// How boxes suppress each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nms {
    /// A box goes if its IoU with a better one of its group is above this (strictly), in [0, 1].
    pub iou_threshold: f32,
    /// Groups are 0..groups; 1 for class-agnostic suppression.
    pub groups: usize,
    /// Boxes kept of an image, best first; the number of columns of the result.
    pub max_out: usize,
    /// True: the numbers of mmcv's `batched_nms`, which moves group g by g · (largest coordinate + 1) in f32 before
    /// taking IoUs. False: coordinates as they are.
    pub offset: bool,
}

/// Indices of the boxes that no better box of their group suppresses, in descending order of score, -1 after the last.
/// Equal scores: lower index first.
///
/// Shapes: boxes `[B,N,4]` f32; scores `[B,N]` f32; group `[B,N]` or `[N]` i32, any other than 0..groups: no box; keep
/// `[B,max_out]` i32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: one sort, then at most N·kept/2 IoUs a group (on a GPU N²/2, at once); workspace 28 B a box (on a GPU up to
/// 545).
/// Errors: `Value` if the threshold is not in [0, 1] or there are no groups; on a GPU also if (groups, index) takes
/// more than 32 bits.
/// Reference: mmcv 2.1 `batched_nms`, with a stable sort; a pair of empty boxes (IoU NaN) does not suppress.
pub fn nms(boxes: &Tensor, scores: &Tensor, group: &Tensor, p: Nms) -> Result<Tensor> {
    let device = boxes.device();
    let _op = device.enter("nms");
    let [b, n, _] = boxes.dims("nms: boxes")?;
    boxes.expect_shape("nms: boxes", &[b, n, 4])?;
    boxes.expect_dtype("nms: boxes", DType::F32)?;
    scores.expect_shape("nms: scores", &[b, n])?;
    scores.expect_dtype("nms: scores", DType::F32)?;
    if group.shape() != [n] {
        group.expect_shape("nms: group", &[b, n])?;
    }
    group.expect_dtype("nms: group", DType::I32)?;
    if !(0.0..=1.0).contains(&p.iou_threshold) || p.groups == 0 {
        return Err(Error::value("nms", format!("{p:?}: want a threshold in [0, 1] and at least one group")));
    }
    let mut keep = Tensor::empty(device, &[b, p.max_out], DType::I32)?;
    let mut ws = match device.runs_kernels() {
        true => cuda::workspace(device, b, n, &p)?,
        false => cpu::workspace(device, b, n, &p)?,
    };
    on_device!(
        device,
        cpu => cpu::forward(&mut keep, &mut ws, boxes.f32s(), scores.f32s(), group.i32s(), n, &p),
        cuda => cuda::forward(&mut keep, &mut ws, boxes, scores, group, &p),
    );
    Ok(keep)
}
