//! Launches of kernels/space_to_depth.cu.

use super::BlockShape;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

/// Mirror of the kernels' SpaceToDepthParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: u32,
    h: u32,
    w: u32,
    c: u32,
    k: u32,
    vector: u32,
}

/// Elements that a thread moves at once: 16 bytes, or 8, where no such vector lies across the end of a block's row or
/// of the map's.
fn vector(s: &BlockShape, element_bytes: usize) -> usize {
    let fits = |v: &usize| (s.k * s.c).is_multiple_of(*v) && (s.w * s.c).is_multiple_of(*v);
    [16, 8].map(|bytes| bytes / element_bytes).into_iter().find(fits).unwrap_or(1)
}

fn params(s: &BlockShape, vector: usize) -> Result<Params> {
    let dim = |n| dim_u32("space_to_depth", n);
    dim(s.k * s.k * s.c)?; // y's channels
    dim((s.w + s.k) * s.c)?; // a row
    Ok(Params { n: dim(s.n)?, h: dim(s.h)?, w: dim(s.w)?, c: dim(s.c)?, k: dim(s.k)?, vector: dim(vector)? })
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, s: &BlockShape) -> Result<()> {
    let (device, v) = (x.device().clone(), vector(s, x.dtype().bytes()));
    let grid = Grid::stride(y.numel() / v, THREADS);
    let k = device.gpu().kernel("space_to_depth_fwd", x.dtype()).out(y).arg(x).params(&params(s, v)?);
    // SAFETY: space_to_depth_fwd(y, x, params): x [N,H,W,C] (checked in mod.rs), y [N,OH,OW,k²C] (mod.rs makes it).
    unsafe { k.launch(grid) }
}

pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, s: &BlockShape) -> Result<()> {
    let (device, v) = (dy.device().clone(), vector(s, dy.dtype().bytes()));
    let grid = Grid::stride(dx.numel() / v, THREADS);
    let k = device.gpu().kernel("space_to_depth_bwd", dy.dtype()).out(dx).arg(dy).params(&params(s, v)?);
    // SAFETY: space_to_depth_bwd(dx, dy, params): dx [N,H,W,C] (mod.rs makes it), dy [N,OH,OW,k²C] (the tape checks
    // it).
    unsafe { k.launch(grid) }
}
