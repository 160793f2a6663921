//! Launches of kernels/gelu.cu.

use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

pub(super) fn forward(y: &mut Tensor, x: &Tensor) -> Result<()> {
    let (device, n) = (x.device().clone(), x.numel() as i64);
    let grid = Grid::stride(x.bytes().div_ceil(16), THREADS);
    let k = device.gpu().kernel("gelu_fwd", x.dtype()).out(y).arg(x).params(&n);
    // SAFETY: gelu_fwd(y, x, n): both have n elements (mod.rs makes y).
    unsafe { k.launch(grid) }
}

pub(super) fn backward(dx: &mut Tensor, dy: Option<&Tensor>, x: &Tensor) -> Result<()> {
    let (device, n) = (x.device().clone(), x.numel() as i64);
    let grid = Grid::stride(x.bytes().div_ceil(16), THREADS);
    let k = device.gpu().kernel("gelu_bwd", x.dtype()).out(dx).opt(dy).arg(x).params(&n);
    // SAFETY: gelu_bwd(dx, dy, x, n): all have n elements (mod.rs makes dx, the tape checks dy); without dy it is in
    // dx.
    unsafe { k.launch(grid) }
}
