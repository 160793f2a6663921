//! Launches of kernels/upsample_add.cu.

use super::UpsampleShape;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

/// Mirror of the kernels' UpsampleAddParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: u32,
    ht: u32,
    wt: u32,
    h: u32,
    w: u32,
    c: u32,
}

fn params(s: &UpsampleShape) -> Result<Params> {
    let dim = |n| dim_u32("upsample_add", n);
    Ok(Params { n: dim(s.n)?, ht: dim(s.ht)?, wt: dim(s.wt)?, h: dim(s.h)?, w: dim(s.w)?, c: dim(s.c)? })
}

pub(super) fn forward(y: &mut Tensor, top: &Tensor, lateral: &Tensor, s: &UpsampleShape) -> Result<()> {
    let (device, grid) = (y.device().clone(), Grid::stride(y.bytes().div_ceil(16), THREADS));
    let k = device.gpu().kernel("upsample_add_fwd", y.dtype()).out(y).arg(top).arg(lateral).params(&params(s)?);
    // SAFETY: upsample_add_fwd(y, top, lateral, params): y and lateral [N,H,W,C], top [N,HT,WT,C] (checked in mod.rs).
    unsafe { k.launch(grid) }
}

pub(super) fn backward(dtop: &mut Tensor, dy: &Tensor, s: &UpsampleShape) -> Result<()> {
    let (device, grid) = (dy.device().clone(), Grid::stride(dtop.bytes().div_ceil(16), THREADS));
    let k = device.gpu().kernel("upsample_add_bwd", dy.dtype()).out(dtop).arg(dy).params(&params(s)?);
    // SAFETY: upsample_add_bwd(dtop, dy, params): dtop [N,HT,WT,C], dy [N,H,W,C] (mod.rs makes dtop, the tape checks
    // dy).
    unsafe { k.launch(grid) }
}
