//! Launches of kernels/rpn_targets.cu.

use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

pub(super) fn forward(target: &mut Tensor, label: &mut Tensor, gt: &Tensor, idx: &Tensor) -> Result<()> {
    let (device, n) = (gt.device().clone(), gt.numel());
    let k = device.gpu().kernel("rpn_targets", DType::I32).out(target).out(label).arg(gt).arg(idx).params(&(n as i64));
    // SAFETY: rpn_targets(target, label, gt, idx, n): all of n elements (checked in mod.rs).
    unsafe { k.launch(Grid::stride(n, THREADS)) }
}
