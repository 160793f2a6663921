//! Launches of kernels/select_linear.cu.

use bytemuck::NoUninit;

use super::Shape;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Rows of a block of the forward pass and of dx.
const ROWS: usize = 32;

/// Mirror of the kernels' SelectLinearParams.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    r: u32,
    m: u32,
    c: u32,
    k: u32,
    chunks: u32,
    rows_per_chunk: u32,
}

/// Mirror of the kernel's SelectFoldParams.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct FoldParams {
    r: u32,
    chunks: u32,
    columns: u32,
    accumulate: u32,
}

fn params(s: &Shape) -> Result<Params> {
    let dim = |n| dim_u32("select_linear", n);
    Ok(Params {
        r: dim(s.r)?,
        m: dim(s.m)?,
        c: dim(s.c)?,
        k: dim(s.k)?,
        chunks: dim(s.chunks())?,
        rows_per_chunk: dim(s.rows_per_chunk())?,
    })
}

fn row_blocks(s: &Shape) -> Grid {
    Grid::blocks(s.r, THREADS).y(s.m.div_ceil(ROWS))
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, w: &Tensor, b: &Tensor, label: &Tensor, s: &Shape) -> Result<()> {
    let device = y.device().clone();
    let k =
        device.gpu().kernel("select_linear_fwd", x.dtype()).out(y).arg(x).arg(w).arg(b).arg(label).params(&params(s)?);
    // SAFETY: select_linear_fwd(y, x, w, b, label, params): x [R,M,C], y [R,M], w [K,C], b [K], label [R] (checked in
    // mod.rs).
    unsafe { k.launch(row_blocks(s)) }
}

pub(super) fn backward_data(dx: &mut Tensor, dy: &Tensor, w: &Tensor, label: &Tensor, s: &Shape) -> Result<()> {
    let device = dy.device().clone();
    let k =
        device.gpu().kernel("select_linear_bwd_dx", dx.dtype()).out(dx).arg(dy).arg(w).arg(label).params(&params(s)?);
    // SAFETY: select_linear_bwd_dx(dx, dy, w, label, params): dx [R,M,C], dy [R,M], w [K,C], label [R] (mod.rs and the
    // tape).
    unsafe { k.launch(row_blocks(s)) }
}

pub(super) fn partial_sums(
    w_sums: &mut Tensor,
    b_sums: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    label: &Tensor,
    s: &Shape,
) -> Result<()> {
    let device = dy.device().clone();
    // Blocks along y: warps of vectors of channels, at least one for the sums of dy.
    let vector = 16 / x.dtype().bytes();
    let lanes = if s.c.is_multiple_of(vector) { s.c / vector } else { s.c };
    let grid = Grid::blocks(s.r * s.chunks(), THREADS).y(lanes.div_ceil(32).max(1));
    let k = device.gpu().kernel("select_linear_bwd_dw", x.dtype()).out(w_sums).out(b_sums).arg(dy).arg(x).arg(label);
    // SAFETY: select_linear_bwd_dw(w_sums, b_sums, dy, x, label, params): w_sums [R·chunks,C], b_sums [R·chunks], dy
    // [R,M], x [R,M,C], label [R] (mod.rs and the tape).
    unsafe { k.params(&params(s)?).launch(grid) }
}

pub(super) fn fold(d: &mut Tensor, accumulate: bool, sums: &Tensor, label: &Tensor, s: &Shape) -> Result<()> {
    let (device, columns) = (sums.device().clone(), sums.dim(1));
    let dim = |n| dim_u32("select_linear", n);
    let params =
        FoldParams { r: dim(s.r)?, chunks: dim(s.chunks())?, columns: dim(columns)?, accumulate: accumulate.into() };
    let k = device.gpu().kernel("select_linear_fold", DType::F32).out(d).arg(sums).arg(label).params(&params);
    // SAFETY: select_linear_fold(d, sums, label, params): d [K,columns], sums [R·chunks,columns], label [R]; a block a
    // class.
    unsafe { k.launch(Grid::blocks(s.k, THREADS).y(columns.div_ceil(32))) }
}
