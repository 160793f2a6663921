//! The best score of each row: by it a dense detector's anchors are ranked.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "row_max", gradient: Gradient::No("ranks candidates at test time only") };

/// `y = max x` over the last dimension; a NaN wins.
///
/// Shapes: x `[..,K]` f32, y `[..]` f32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads M·K, writes M; memory-bound.
/// Errors: `Shape` if x has no dimension or K is 0.
/// Reference: torch.amax.
pub fn row_max(x: &Tensor) -> Result<Tensor> {
    let _op = x.device().enter("row_max");
    x.expect_dtype("row_max: x", DType::F32)?;
    let Some((&k, rows)) = x.shape().split_last().filter(|(k, _)| **k > 0) else {
        return Err(Error::Shape { what: "row_max: x".into(), want: "[..,K]".into(), got: x.shape().to_vec() });
    };
    let mut y = Tensor::empty(x.device(), rows, DType::F32)?;
    on_device!(
        x.device(),
        cpu => cpu::forward(y.f32s_mut(), x.f32s(), k),
        cuda => cuda::forward(&mut y, x, k),
    );
    Ok(y)
}
