//! Launches of kernels/gather_rows.cu.

use super::GatherShape;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernels' GatherRowsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    n: u32,
    s: u32,
    c: u32,
    x_rows: u32,
}

fn params(s: &GatherShape) -> Result<Params> {
    let dim = |n| dim_u32("gather_rows", n);
    let x_rows = if s.shared { 0 } else { dim(s.n)? };
    Ok(Params { b: dim(s.b)?, n: dim(s.n)?, s: dim(s.s)?, c: dim(s.c)?, x_rows })
}

/// One thread a vector of columns of each row asked for, as the kernels choose them.
fn rows(s: &GatherShape) -> Grid {
    let vector = if s.c.is_multiple_of(4) { 4 } else { 1 };
    Grid::stride(s.b * s.s * (s.c / vector), THREADS)
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, idx: &Tensor, s: &GatherShape) -> Result<()> {
    let device = y.device().clone();
    let k = device.gpu().kernel("gather_rows_fwd", DType::F32).out(y).arg(x).arg(idx).params(&params(s)?);
    // SAFETY: gather_rows_fwd(y, x, idx, params): y [B,S,C], x [N,C] or [B,N,C] as x_rows says, idx [B,S] (checked in
    // mod.rs).
    unsafe { k.launch(rows(s)) }
}

/// `links [B S]` i32: which rows name the same index.
pub(super) fn backward(dx: &mut Tensor, links: &mut Tensor, dy: &Tensor, idx: &Tensor, s: &GatherShape) -> Result<()> {
    let (device, params) = (dy.device().clone(), params(s)?);
    let units = (dx.numel().div_ceil(4)).max(s.b * s.s.next_multiple_of(THREADS as usize));
    let k = device.gpu().kernel("gather_rows_bwd_links", DType::F32).out(dx).out(links).arg(idx).params(&params);
    // SAFETY: gather_rows_bwd_links(dx, links, idx, params): dx [B,N,C], links and idx [B,S] (mod.rs makes them).
    unsafe { k.launch(Grid::stride(units, THREADS))? };
    let k = device.gpu().kernel("gather_rows_bwd", DType::F32).out(dx).arg(links).arg(dy).arg(idx).params(&params);
    // SAFETY: gather_rows_bwd(dx, links, dy, idx, params): as above, dy [B,S,C] (the tape checks it).
    unsafe { k.launch(rows(s)) }
}
