//! The assignment of candidates when ground truth is put in front of the proposals.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "with_gt", gradient: Gradient::No("indices have no gradient") };

/// The assignment of candidates `[ground truth ; proposals]`: each ground truth stands for itself.
///
/// Shapes: assigned `[B,P]`, gt_count `[B]`, result `[B,G+P]`, all i32; unused slots are -2.
/// Saves: nothing.
/// Gradient: none.
/// Cost: one pass over inputs and outputs; memory-bound.
/// Errors: `Shape`, `Dtype`.
/// Reference: mmdetection's `AssignResult.add_gt_`.
pub fn with_gt(assigned: &Tensor, gt_count: &Tensor, g: usize) -> Result<Tensor> {
    let device = assigned.device();
    let _op = device.enter("with_gt");
    let [b, p] = assigned.dims("with_gt: assigned")?;
    assigned.expect_dtype("with_gt: assigned", DType::I32)?;
    gt_count.expect_shape("with_gt: gt_count", &[b])?;
    gt_count.expect_dtype("with_gt: gt_count", DType::I32)?;
    let mut out = Tensor::empty(device, &[b, g + p], DType::I32)?;
    on_device!(
        device,
        cpu => cpu::forward(out.i32s_mut(), assigned.i32s(), gt_count.i32s(), g, p),
        cuda => cuda::forward(&mut out, assigned, gt_count, g),
    );
    Ok(out)
}
