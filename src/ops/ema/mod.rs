//! The exponential moving average of weights.

mod cpu;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "ema", gradient: Gradient::No("it follows parameters after the optimizer's step") };

/// `average += (1 - decay) * (value - average)`, for each pair of average and value.
///
/// Shapes: average and value of a pair alike, f32; decay `[1]` f32, read on the device.
/// Saves: nothing.
/// Gradient: none: it comes after the optimizer's step.
/// Cost: reads two, writes one value a parameter; memory-bound.
/// Errors: `Shape`, `Dtype`, naming the place in the list.
/// Reference: mmengine's ExponentialMovingAverage with momentum 1 - decay; torch's AveragedModel with get_ema_avg_fn(decay).
pub fn ema(pairs: &mut [(&mut Tensor, &Tensor)], decay: &Tensor) -> Result<()> {
    let _op = decay.device().enter("ema");
    decay.expect_shape("ema: decay", &[1])?;
    for (i, (average, value)) in pairs.iter().enumerate() {
        value.expect_shape(&format!("ema: value {i}"), average.shape())?;
        value.expect_dtype(&format!("ema: value {i}"), DType::F32)?;
        average.expect_dtype(&format!("ema: average {i}"), DType::F32)?;
    }
    for (average, value) in pairs {
        on_device!(decay.device(), cpu => cpu::update(average.f32s_mut(), value.f32s(), decay.f32s()[0]));
    }
    Ok(())
}
