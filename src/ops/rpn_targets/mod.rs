//! Targets of the region proposal network from its samples.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "rpn_targets", gradient: Gradient::No("targets are constants of the losses") };

/// Targets of the region proposal network: for [`bce`](super::bce::bce) 1 (positive), 0 (negative) or -1 (padding), and
/// for `smooth_l1` the column group of the box: 0 (positive) or -1 (no box target).
///
/// Shapes: gt `[B,S]` (-1 = not positive), idx `[B,S]` (-1 = padding), target `[M]`, box label `[M]`, all i32, M = B·S.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads 2·M, writes 2·M.
/// Errors: `Shape` if gt and idx differ in shape.
/// Reference: mmdetection's `AnchorHead.get_targets`.
pub fn rpn_targets(gt: &Tensor, idx: &Tensor) -> Result<(Tensor, Tensor)> {
    let _op = gt.device().enter("rpn_targets");
    let [b, s] = gt.dims("rpn_targets: gt")?;
    idx.expect_shape("rpn_targets: idx", &[b, s])?;
    gt.expect_dtype("rpn_targets: gt", DType::I32)?;
    idx.expect_dtype("rpn_targets: idx", DType::I32)?;
    let mut target = Tensor::empty(gt.device(), &[b * s], DType::I32)?;
    let mut label = Tensor::empty(gt.device(), &[b * s], DType::I32)?;
    on_device!(
        gt.device(),
        cpu => cpu::forward(target.i32s_mut(), label.i32s_mut(), gt.i32s(), idx.i32s()),
        cuda => cuda::forward(&mut target, &mut label, gt, idx),
    );
    Ok((target, label))
}
