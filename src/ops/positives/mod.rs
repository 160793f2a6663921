//! The columns of samples that are positives.

mod cpu;
mod cuda;

use std::ops::Range;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "positives", gradient: Gradient::No("indices have no gradient") };

/// Which of some columns of samples are positives: the column, or -1. Positives are in front, so that the columns below
/// the sampler's quota hold them all.
///
/// Shapes: gt `[B,S]` i32 (as [`Sampled::gt`]), result `[B,P]` i32 for P columns.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads and writes B·P.
/// Errors: `Dtype`; `Value` if there are no such columns.
/// Reference: none (bookkeeping).
pub fn positives(gt: &Tensor, columns: Range<usize>) -> Result<Tensor> {
    let _op = gt.device().enter("positives");
    let [b, s] = gt.dims("positives: gt")?;
    gt.expect_dtype("positives: gt", DType::I32)?;
    if columns.start > columns.end || columns.end > s {
        return Err(Error::value("positives", format!("columns {columns:?} of {s} samples")));
    }
    let (first, p) = (columns.start, columns.len());
    let mut out = Tensor::empty(gt.device(), &[b, p], DType::I32)?;
    on_device!(
        gt.device(),
        cpu => cpu::forward(out.i32s_mut(), gt.i32s(), s, first, p),
        cuda => cuda::forward(&mut out, gt, s, first, p),
    );
    Ok(out)
}
