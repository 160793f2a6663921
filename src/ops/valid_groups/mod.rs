//! The group of each box for suppression within groups, and which boxes are none.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "valid_groups", gradient: Gradient::No("groups are indices") };

/// The group (pyramid level) of each position, -1 where there is no box: the index is negative, or `w > 0` and `h > 0`
/// do not both hold (a NaN fails them).
///
/// `group_of` lists runs of positions, in order: (length, group).
///
/// Shapes: boxes `[B,K,4]` f32; idx `[B,K]` i32; y `[B,K]` i32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads 5·B·K, writes B·K.
/// Errors: `Shape` if idx is not `[B,K]`; `Value` if the runs do not add up to `K`.
/// Reference: mmdetection's `RPNHead._get_bboxes_single`.
pub fn valid_groups(boxes: &Tensor, idx: &Tensor, group_of: &[(usize, i32)]) -> Result<Tensor> {
    let _op = boxes.device().enter("valid_groups");
    let [b, k, _] = boxes.dims("valid_groups: boxes")?;
    boxes.expect_shape("valid_groups: boxes", &[b, k, 4])?;
    boxes.expect_dtype("valid_groups: boxes", DType::F32)?;
    idx.expect_shape("valid_groups: idx", &[b, k])?;
    idx.expect_dtype("valid_groups: idx", DType::I32)?;
    let total: usize = group_of.iter().map(|g| g.0).sum();
    if total != k {
        return Err(Error::value("valid_groups", format!("groups of {total} positions in all for {k} boxes")));
    }
    let mut y = Tensor::empty(boxes.device(), &[b, k], DType::I32)?;
    on_device!(
        boxes.device(),
        cpu => cpu::forward(y.i32s_mut(), boxes.f32s(), idx.i32s(), group_of),
        cuda => cuda::forward(&mut y, boxes, idx, group_of),
    );
    Ok(y)
}
