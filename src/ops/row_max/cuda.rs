//! Launches of kernels/row_max.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Threads of a row (the kernel's LANES).
const LANES: usize = 8;

/// Mirror of the kernel's RowMaxParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    m: u32,
    k: u32,
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, k: usize) -> Result<()> {
    let (device, m) = (x.device().clone(), y.numel());
    let params = Params { m: dim_u32("row_max", m)?, k: dim_u32("row_max", k)? };
    let kernel = device.gpu().kernel("row_max", DType::F32).out(y).arg(x).params(&params);
    // SAFETY: row_max(y, x, params): x [M,K], y of M elements (checked in mod.rs).
    unsafe { kernel.launch(Grid::stride(m * LANES, THREADS)) }
}
