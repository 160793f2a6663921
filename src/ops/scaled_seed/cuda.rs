//! Launches of kernels/scaled_seed.cu.

use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

pub(super) fn forward(dy: &mut Tensor, state: &Tensor, weight: f32) -> Result<()> {
    let device = state.device().clone();
    let k = device.gpu().kernel("scaled_seed", DType::F32).out(dy).arg(state).params(&weight);
    // SAFETY: scaled_seed(dy, state, weight): dy of one element, state of three (checked in mod.rs).
    unsafe { k.launch(Grid::blocks(1, 32)) }
}
