//! Launches of kernels/bce.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::ops::common::partial::Partial;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Threads of a block of the forward pass. One block is enough for the loss of a recipe.
const FORWARD_THREADS: u32 = 1024;
/// Elements per thread of the forward pass.
const PER_THREAD: usize = 4;

/// Mirror of the kernels' BceParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    m: u32,
    weight: f32,
}

/// Blocks of the forward pass over `m` elements, and slots of its sums.
pub(super) fn blocks(m: usize) -> usize {
    m.div_ceil(FORWARD_THREADS as usize * PER_THREAD)
}

pub(super) fn forward(
    loss: &mut Tensor,
    sums: &mut Partial,
    x: &Tensor,
    target: &Tensor,
    avg: &Tensor,
    weight: f32,
) -> Result<()> {
    let device = x.device().clone();
    let params = Params { m: dim_u32("bce", target.numel())?, weight };
    let k = device.gpu().kernel("bce_fwd", DType::F32).out(loss).out(sums.tensor_mut());
    let k = k.arg(x).arg(target).arg(avg).params(&params);
    // SAFETY: bce_fwd(loss, sums, x, target, avg, params): x and target of m elements, avg and loss of one (checked in
    // mod.rs); sums has a slot for each block.
    unsafe { k.launch(Grid::blocks(blocks(target.numel()), FORWARD_THREADS))? };
    if sums.len() == 1 {
        return Ok(());
    }
    let k =
        device.gpu().kernel("bce_fold", DType::F32).out(loss).arg(sums.tensor()).arg(avg).params(&sums.fold(weight)?);
    // SAFETY: bce_fold(loss, sums, avg, params): sums of params.n slots, all written above.
    unsafe { k.launch(Grid::blocks(1, FORWARD_THREADS)) }
}

pub(super) fn backward(
    dx: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    target: &Tensor,
    avg: &Tensor,
    weight: f32,
) -> Result<()> {
    let (device, grid) = (dy.device().clone(), Grid::stride(target.numel(), THREADS));
    let params = Params { m: dim_u32("bce", target.numel())?, weight };
    let k = device.gpu().kernel("bce_bwd", DType::F32).out(dx).arg(dy).arg(x).arg(target).arg(avg).params(&params);
    // SAFETY: bce_bwd(dx, dy, x, target, avg, params): dx, x and target of m elements, dy and avg of one (checked in
    // mod.rs and by the tape).
    unsafe { k.launch(grid) }
}
