//! The exponential moving average of weights.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "ema", gradient: Gradient::No("it follows parameters after the optimizer's step") };

/// `average += share * (value - average)`, for each pair of average and value; `share = 1 - decay`.
///
/// The share is what is stored: of a decay near 1, which rounds to f32, little would be left of the difference.
///
/// Shapes: average and value of a pair alike, f32; share `[1]` f32, read on the device.
/// Saves: nothing.
/// Gradient: none: it comes after the optimizer's step.
/// Cost: reads two, writes one value a parameter; memory-bound.
/// Errors: `Shape`, `Dtype`, naming the place in the list.
/// Reference: mmengine's ExponentialMovingAverage with momentum share; torch's AveragedModel with
/// get_ema_avg_fn(decay).
pub fn ema(pairs: &mut [(&mut Tensor, &Tensor)], share: &Tensor) -> Result<()> {
    let _op = share.device().enter("ema");
    share.expect_shape("ema: share", &[1])?;
    share.expect_dtype("ema: share", DType::F32)?;
    for (i, (average, value)) in pairs.iter().enumerate() {
        value.expect_shape(&format!("ema: value {i}"), average.shape())?;
        value.expect_dtype(&format!("ema: value {i}"), DType::F32)?;
        average.expect_dtype(&format!("ema: average {i}"), DType::F32)?;
    }
    on_device!(
        share.device(),
        cpu => for (average, value) in pairs {
            cpu::update(average.f32s_mut(), value.f32s(), share.f32s()[0]);
        },
        cuda => cuda::update(pairs, share),
    );
    Ok(())
}
