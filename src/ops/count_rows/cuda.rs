//! Launches of kernels/count_rows.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

pub(super) fn forward(out: &mut Tensor, idx: &Tensor, s: usize) -> Result<()> {
    let (device, blocks, s) = (out.device().clone(), out.numel(), dim_u32("count_rows", s)?);
    let k = device.gpu().kernel("count_rows", DType::I32).out(out).arg(idx).params(&s);
    // SAFETY: count_rows(out, idx, s): out [B], idx [B,S], one block for each of B rows (checked in mod.rs).
    unsafe { k.launch(Grid::blocks(blocks, THREADS)) }
}
