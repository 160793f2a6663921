//! Class probabilities at test time.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "softmax", gradient: Gradient::No("read at test time only; losses start from logits (softmax_ce)") };

/// `y = exp(x - max x) / sum exp(x - max x)` over the last dimension.
///
/// Shapes: x, y `[..,K]` f32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads and writes M·K; one exponential an element.
/// Errors: `Shape` if x has no dimension.
/// Reference: Girshick 2015, section 2.1.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let _op = x.device().enter("softmax");
    x.expect_dtype("softmax: x", DType::F32)?;
    let Some(&k) = x.shape().last() else {
        return Err(Error::Shape { what: "softmax: x".into(), want: "[..,K]".into(), got: Vec::new() });
    };
    let mut y = Tensor::empty(x.device(), x.shape(), DType::F32)?;
    on_device!(
        x.device(),
        cpu => cpu::forward(y.f32s_mut(), x.f32s(), k),
        cuda => cuda::forward(&mut y, x, k),
    );
    Ok(y)
}
