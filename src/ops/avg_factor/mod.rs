//! The divisor of the losses of a batch, from the numbers of positives and negatives.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "avg_factor", gradient: Gradient::No("a divisor is a constant of the losses") };

/// Which samples the divisor counts. One number divides both the class loss and the box loss. It counts the positives
/// alone only where every anchor takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AvgFactor {
    /// Region proposal network: `sum over images of max(pos, 1) + max(neg, 1)`. For example 513 for two images with 256
    /// samples each, one of which has no positive.
    Rpn,
    /// RoI heads: `max(1, sum over images of pos + neg)`.
    Roi,
    /// Dense detectors with focal loss: `sum over images of max(pos, 1)`.
    Dense,
    /// Mask heads: `max(1, sum over images of pos)`.
    Positives,
}

/// Computes the number that the losses of a batch are divided by.
///
/// Shapes: counts `[B,2]` i32 (positives, negatives); y `[1]` f32, at least 1.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads 2·B numbers, one launch.
/// Errors: `Shape` if counts is not `[B,2]`.
/// Reference: mmdetection's `avg_factor` (its epsilon, at most one ulp, left out).
pub fn avg_factor(counts: &Tensor, kind: AvgFactor) -> Result<Tensor> {
    let _op = counts.device().enter("avg_factor");
    let [b, _] = counts.dims("avg_factor: counts")?;
    counts.expect_shape("avg_factor: counts", &[b, 2])?;
    counts.expect_dtype("avg_factor: counts", DType::I32)?;
    let mut y = Tensor::empty(counts.device(), &[1], DType::F32)?;
    on_device!(
        counts.device(),
        cpu => cpu::forward(y.f32s_mut(), counts.i32s(), kind),
        cuda => cuda::forward(&mut y, counts, kind),
    );
    Ok(y)
}
