//! How many rows of a padded list are there.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "count_rows", gradient: Gradient::No("indices have no gradient") };

/// How many rows of each image are there: those whose index is not negative.
///
/// Shapes: idx `[B,S]` i32, result `[B]` i32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads B·S.
/// Errors: `Dtype`.
/// Reference: none (bookkeeping).
pub fn count_rows(idx: &Tensor) -> Result<Tensor> {
    let _op = idx.device().enter("count_rows");
    let [b, s] = idx.dims("count_rows: idx")?;
    idx.expect_dtype("count_rows: idx", DType::I32)?;
    let mut out = Tensor::empty(idx.device(), &[b], DType::I32)?;
    on_device!(
        idx.device(),
        cpu => cpu::forward(out.i32s_mut(), idx.i32s(), s),
        cuda => cuda::forward(&mut out, idx, s),
    );
    Ok(out)
}
