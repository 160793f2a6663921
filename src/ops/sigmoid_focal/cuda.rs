//! Launches of kernels/sigmoid_focal.cu.

use super::Focal;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::ops::common::partial::Partial;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
const FOLD_THREADS: u32 = 1024;
/// Most blocks of the forward pass, and slots of its sums: four for each thread of the fold.
const MAX_BLOCKS: usize = 4 * FOLD_THREADS as usize;

/// Mirror of the kernels' SigmoidFocalParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    m: u32,
    k: u32,
    alpha: f32,
    gamma: f32,
    weight: f32,
}

fn params(m: usize, how: Focal) -> Result<Params> {
    let dim = |n| dim_u32("sigmoid_focal", n);
    Ok(Params { m: dim(m)?, k: dim(how.k)?, alpha: how.alpha, gamma: how.gamma, weight: how.weight })
}

/// One thread a vector of classes, as the kernels choose them.
fn units(m: usize, k: usize) -> usize {
    m * (k / if k.is_multiple_of(4) { 4 } else { 1 })
}

/// Blocks of the forward pass over `m` rows of `k` classes, and slots of its sums.
pub(super) fn blocks(m: usize, k: usize) -> usize {
    units(m, k).div_ceil(THREADS as usize).min(MAX_BLOCKS)
}

pub(super) fn forward(
    loss: &mut Tensor,
    sums: &mut Partial,
    x: &Tensor,
    labels: &Tensor,
    avg: &Tensor,
    how: Focal,
) -> Result<()> {
    let (device, m) = (x.device().clone(), labels.numel());
    let k = device.gpu().kernel("sigmoid_focal_fwd", DType::F32).out(loss).out(sums.tensor_mut());
    let k = k.arg(x).arg(labels).arg(avg).params(&params(m, how)?);
    // SAFETY: sigmoid_focal_fwd(loss, sums, x, labels, avg, params): x [M,K], labels of M elements, avg and loss of one
    // (checked in mod.rs); sums has a slot for each block.
    unsafe { k.launch(Grid::blocks(blocks(m, how.k), THREADS))? };
    if sums.len() == 1 {
        return Ok(());
    }
    let k = device.gpu().kernel("sigmoid_focal_fold", DType::F32).out(loss).arg(sums.tensor()).arg(avg);
    let k = k.params(&sums.fold(how.weight)?);
    // SAFETY: sigmoid_focal_fold(loss, sums, avg, params): sums of params.n slots, all written above.
    unsafe { k.launch(Grid::blocks(1, FOLD_THREADS)) }
}

pub(super) fn backward(
    dx: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    labels: &Tensor,
    avg: &Tensor,
    how: Focal,
) -> Result<()> {
    let (device, m) = (dy.device().clone(), labels.numel());
    let k = device.gpu().kernel("sigmoid_focal_bwd", DType::F32).out(dx).arg(dy).arg(x).arg(labels).arg(avg);
    let k = k.params(&params(m, how)?);
    // SAFETY: sigmoid_focal_bwd(dx, dy, x, labels, avg, params): dx and x [M,K], labels of M elements, dy and avg of
    // one (checked in mod.rs and by the tape).
    unsafe { k.launch(Grid::stride(units(m, how.k), THREADS)) }
}
