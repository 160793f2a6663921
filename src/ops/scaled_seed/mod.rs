//! The gradient of a scaled loss, with which the backward pass begins.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "scaled_seed", gradient: Gradient::No("it is the first gradient") };

/// `dy = weight * scale`, the scale being `state[0]`: the gradient of a loss, with which the backward pass begins.
///
/// Shapes: state `[3]`, dy `[1]` f32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: one number, one launch; nothing is read by the host.
/// Errors: `Shape`, `Dtype`.
/// Reference: Micikevicius et al. 2018, section 3.2.
pub fn scaled_seed(state: &Tensor, weight: f32) -> Result<Tensor> {
    let _op = state.device().enter("scaled_seed");
    state.expect_shape("scaled_seed: state", &[3])?;
    state.expect_dtype("scaled_seed: state", DType::F32)?;
    let mut dy = Tensor::empty(state.device(), &[1], DType::F32)?;
    on_device!(
        state.device(),
        cpu => dy.f32s_mut()[0] = cpu::forward(state.f32s(), weight),
        cuda => cuda::forward(&mut dy, state, weight),
    );
    Ok(dy)
}
