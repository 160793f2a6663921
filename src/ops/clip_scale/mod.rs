//! The factor that clips gradients to a norm.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "clip_scale", gradient: Gradient::No("it comes after the backward pass") };

/// `scale = min(1, max_norm / (norm + 1e-6))`, to be given to the optimizer: gradients are clipped without a host read.
/// If the norm is not finite, the scale is NaN, and the optimizer skips the step. Without a limit (`max_norm` infinite)
/// the scale is 1 or NaN.
///
/// Shapes: norm, scale `[1]` f32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: one number, one launch; nothing is read by the host.
/// Errors: `Shape` if norm is not `[1]`, `Dtype`.
/// Reference: torch.nn.utils.clip_grad_norm_.
pub fn clip_scale(norm: &Tensor, max_norm: f32) -> Result<Tensor> {
    let _op = norm.device().enter("clip_scale");
    norm.expect_shape("clip_scale: norm", &[1])?;
    norm.expect_dtype("clip_scale: norm", DType::F32)?;
    let mut scale = Tensor::empty(norm.device(), &[1], DType::F32)?;
    on_device!(
        norm.device(),
        cpu => scale.f32s_mut()[0] = cpu::forward(norm.f32s()[0], max_norm),
        cuda => cuda::forward(&mut scale, norm, max_norm),
    );
    Ok(scale)
}
