//! Numbers by index: classes and rows of what was kept.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "gather_i32", gradient: Gradient::No("indices have no gradient") };

/// `y[b,s] = x[b, idx[b,s]]`, and `missing` where the index is outside `0..N` (-1 = none).
///
/// Shapes: x `[B,N]`, idx `[B,S]`, y `[B,S]`, all i32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: one pass over inputs and outputs; memory-bound.
/// Errors: `Shape` if idx is not `[B,S]`.
/// Reference: none (indexing).
pub fn gather_i32(x: &Tensor, idx: &Tensor, missing: i32) -> Result<Tensor> {
    let _op = x.device().enter("gather_i32");
    let [b, n] = x.dims("gather_i32: x")?;
    x.expect_dtype("gather_i32: x", DType::I32)?;
    let s = super::gather_rows::rows_of("gather_i32", idx, b)?;
    let mut y = Tensor::empty(x.device(), &[b, s], DType::I32)?;
    on_device!(
        x.device(),
        cpu => cpu::forward(y.i32s_mut(), x.i32s(), idx.i32s(), n, s, missing),
        cuda => cuda::forward(&mut y, x, idx, missing),
    );
    Ok(y)
}
