//! Launches of kernels/max_pool.cu.

use super::PoolShape;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 128;
/// Most blocks along y; the kernels loop over further rows.
const MAX_ROWS: usize = 16_384;

/// Mirror of the kernels' MaxPoolParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: u32,
    h: u32,
    w: u32,
    c: u32,
    oh: u32,
    ow: u32,
    k: u32,
    stride: u32,
    pad: u32,
}

fn params(s: &PoolShape) -> Result<Params> {
    let dim = |n| dim_u32("max_pool", n);
    dim(s.w.max(s.ow()) * s.c)?; // within a row the kernels count in 32 bits
    let (h, w, oh, ow) = (dim(s.h)?, dim(s.w)?, dim(s.oh())?, dim(s.ow())?);
    Ok(Params { n: dim(s.n)?, h, w, c: dim(s.c)?, oh, ow, k: dim(s.k)?, stride: dim(s.stride)?, pad: dim(s.pad)? })
}

/// One thread a vector of a map of `rows` rows, `cells` cells and `c` channels.
fn grid(rows: usize, cells: usize, c: usize, dtype: DType) -> Grid {
    let vector = 16 / dtype.bytes();
    let vectors = if c.is_multiple_of(vector) { c / vector } else { c };
    Grid::threads(cells * vectors, THREADS).y(rows.min(MAX_ROWS))
}

pub(super) fn forward(y: &mut Tensor, which: Option<&mut Tensor>, x: &Tensor, s: &PoolShape) -> Result<()> {
    let (device, grid) = (x.device().clone(), grid(s.n * s.oh(), s.ow(), s.c, x.dtype()));
    let k = device.gpu().kernel("max_pool_fwd", x.dtype()).out(y).out_opt(which).arg(x).params(&params(s)?);
    // SAFETY: max_pool_fwd(y, which or null, x, params): y and which [N,OH,OW,C], x [N,H,W,C] (checked and made in
    // mod.rs).
    unsafe { k.launch(grid) }
}

pub(super) fn backward(dx: &mut Tensor, which: &Tensor, dy: &Tensor, s: &PoolShape) -> Result<()> {
    let (device, grid) = (dy.device().clone(), grid(s.n * s.h, s.w, s.c, dy.dtype()));
    let k = device.gpu().kernel("max_pool_bwd", dy.dtype()).out(dx).arg(which).arg(dy).params(&params(s)?);
    // SAFETY: max_pool_bwd(dx, which, dy, params): dx [N,H,W,C], which and dy [N,OH,OW,C] (mod.rs makes dx and which,
    // the tape checks dy).
    unsafe { k.launch(grid) }
}
