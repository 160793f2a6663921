//! Launches of kernels/softmax_ce.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::ops::common::partial::Partial;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Rows of a block: one a warp.
const ROWS: usize = THREADS as usize / 32;
/// Most blocks of the forward pass, and slots of its sums: four for each thread of the fold.
const MAX_BLOCKS: usize = 4 * FOLD_THREADS as usize;
const FOLD_THREADS: u32 = 1024;

/// Mirror of the kernels' SoftmaxCeParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    m: u32,
    c: u32,
    weight: f32,
}

fn params(labels: &Tensor, c: usize, weight: f32) -> Result<Params> {
    Ok(Params { m: dim_u32("softmax_ce", labels.numel())?, c: dim_u32("softmax_ce", c)?, weight })
}

/// Blocks of the forward pass over `m` rows, and slots of its sums.
pub(super) fn blocks(m: usize) -> usize {
    m.div_ceil(ROWS).min(MAX_BLOCKS)
}

pub(super) fn forward(
    loss: &mut Tensor,
    sums: &mut Partial,
    x: &Tensor,
    labels: &Tensor,
    avg: &Tensor,
    c: usize,
    weight: f32,
) -> Result<()> {
    let device = x.device().clone();
    let k = device.gpu().kernel("softmax_ce_fwd", DType::F32).out(loss).out(sums.tensor_mut());
    let k = k.arg(x).arg(labels).arg(avg).params(&params(labels, c, weight)?);
    // SAFETY: softmax_ce_fwd(loss, sums, x, labels, avg, params): x [M,C], labels of M elements, avg and loss of one
    // (checked in mod.rs); sums has a slot for each block.
    unsafe { k.launch(Grid::blocks(blocks(labels.numel()), THREADS))? };
    if sums.len() == 1 {
        return Ok(());
    }
    let k = device.gpu().kernel("softmax_ce_fold", DType::F32).out(loss).arg(sums.tensor()).arg(avg);
    let k = k.params(&sums.fold(weight)?);
    // SAFETY: softmax_ce_fold(loss, sums, avg, params): sums of params.n slots, all written above.
    unsafe { k.launch(Grid::blocks(1, FOLD_THREADS)) }
}

pub(super) fn backward(
    dx: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    labels: &Tensor,
    avg: &Tensor,
    c: usize,
    weight: f32,
) -> Result<()> {
    let (device, grid) = (dy.device().clone(), Grid::stride(labels.numel() * 32, THREADS));
    let k = device.gpu().kernel("softmax_ce_bwd", DType::F32).out(dx).arg(dy).arg(x).arg(labels).arg(avg);
    let k = k.params(&params(labels, c, weight)?);
    // SAFETY: softmax_ce_bwd(dx, dy, x, labels, avg, params): dx and x [M,C], labels of M elements, dy and avg of one
    // (checked in mod.rs and by the tape).
    unsafe { k.launch(grid) }
}
