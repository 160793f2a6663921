//! Launches of kernels/clip_scale.cu.

use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

pub(super) fn forward(scale: &mut Tensor, norm: &Tensor, max_norm: f32) -> Result<()> {
    let device = norm.device().clone();
    let k = device.gpu().kernel("clip_scale", DType::F32).out(scale).arg(norm).params(&max_norm);
    // SAFETY: clip_scale(scale, norm, max_norm): both of one element (checked in mod.rs).
    unsafe { k.launch(Grid::blocks(1, 32)) }
}
