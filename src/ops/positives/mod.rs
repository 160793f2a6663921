//! Finds the sample columns that are positives.

mod cpu;
mod cuda;

use std::ops::Range;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "positives", gradient: Gradient::No("indices have no gradient") };

/// For each of the given sample columns, the column if the sample is positive, else -1. Positives come first among the
/// samples, so the columns below the sampler's quota of positives hold all of them.
///
/// Shapes: gt `[B,S]` i32 (like [`Sampled::gt`](super::sample::Sampled::gt)), result `[B,P]` i32 for P columns.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads and writes B·P.
/// Errors: `Dtype`; `Value` if the columns are not within 0..S.
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
