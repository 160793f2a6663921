//! Launches of kernels/refine_boxes.cu.

use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

pub(super) fn valid(y: &mut Tensor, idx: &Tensor, first: i32) -> Result<()> {
    let (device, n) = (y.device().clone(), y.numel());
    let k = device.gpu().kernel("proposals_from", DType::I32).out(y).arg(idx).params(&first).params(&(n as i64));
    // SAFETY: proposals_from(y, idx, first, n): both of n elements (checked in mod.rs).
    unsafe { k.launch(Grid::stride(n, THREADS)) }
}
