//! Launches of kernels/smooth_l1.cu.

use super::SmoothL1Bwd;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::ops::common::partial::Partial;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Threads of a block of the forward pass; each takes one row.
const FORWARD_THREADS: u32 = 1024;

/// Mirror of the kernels' SmoothL1Params.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    m: u32,
    k: u32,
    beta: f32,
    weight: f32,
}

fn params(a: &SmoothL1Bwd) -> Result<Params> {
    let dim = |n| dim_u32("smooth_l1", n);
    Ok(Params { m: dim(a.labels.numel())?, k: dim(a.k)?, beta: a.beta, weight: a.weight })
}

/// Blocks of the forward pass over `m` rows, and slots of its sums.
pub(super) fn blocks(m: usize) -> usize {
    m.div_ceil(FORWARD_THREADS as usize)
}

pub(super) fn forward(loss: &mut Tensor, sums: &mut Partial, a: &SmoothL1Bwd) -> Result<()> {
    let device = a.deltas.device().clone();
    let k = device.gpu().kernel("smooth_l1_fwd", DType::F32).out(loss).out(sums.tensor_mut());
    let k = k.arg(&a.deltas).arg(&a.targets).arg(&a.labels).arg(&a.avg).params(&params(a)?);
    // SAFETY: smooth_l1_fwd(loss, sums, deltas, targets, labels, avg, params): deltas [M,4K], targets of 4M elements,
    // labels of M, avg and loss of one (checked in mod.rs); sums has a slot for each block.
    unsafe { k.launch(Grid::blocks(blocks(a.labels.numel()), FORWARD_THREADS))? };
    if sums.len() == 1 {
        return Ok(());
    }
    let k = device.gpu().kernel("smooth_l1_fold", DType::F32).out(loss).arg(sums.tensor()).arg(&a.avg);
    let k = k.params(&sums.fold(a.weight)?);
    // SAFETY: smooth_l1_fold(loss, sums, avg, params): sums of params.n slots, all written above.
    unsafe { k.launch(Grid::blocks(1, FORWARD_THREADS)) }
}

pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, a: &SmoothL1Bwd) -> Result<()> {
    let (device, grid) = (dy.device().clone(), Grid::stride(dx.numel() / 4, THREADS));
    let k = device.gpu().kernel("smooth_l1_bwd", DType::F32).out(dx).arg(dy);
    let k = k.arg(&a.deltas).arg(&a.targets).arg(&a.labels).arg(&a.avg).params(&params(a)?);
    // SAFETY: smooth_l1_bwd(dx, dy, deltas, targets, labels, avg, params): dx and deltas [M,4K], targets of 4M
    // elements, labels of M, dy and avg of one (checked in mod.rs and by the tape).
    unsafe { k.launch(grid) }
}
