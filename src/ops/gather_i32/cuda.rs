//! Launches of kernels/gather_i32.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernel's GatherI32Params.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    n: u32,
    s: u32,
    missing: i32,
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, idx: &Tensor, missing: i32) -> Result<()> {
    let dim = |n| dim_u32("gather_i32", n);
    let params = Params { b: dim(y.dim(0))?, n: dim(x.dim(1))?, s: dim(y.dim(1))?, missing };
    let (device, grid) = (y.device().clone(), Grid::stride(y.numel(), THREADS));
    let k = device.gpu().kernel("gather", DType::I32).out(y).arg(x).arg(idx).params(&params);
    // SAFETY: gather_i32(y, x, idx, params): y and idx [B,S], x [B,N] (checked in mod.rs).
    unsafe { k.launch(grid) }
}
