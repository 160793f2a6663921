//! Launch of kernels/relu.cu; the backward pass is elementwise.cu's `relu_mask`.

use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

pub(super) fn forward(y: &mut Tensor, x: &Tensor) -> Result<()> {
    let (device, n) = (x.device().clone(), x.numel() as i64);
    let grid = Grid::stride(x.bytes().div_ceil(16), THREADS);
    let k = device.gpu().kernel("relu_fwd", x.dtype()).out(y).arg(x).params(&n);
    // SAFETY: relu_fwd(y, x, n): both have n elements of one type (mod.rs makes y).
    unsafe { k.launch(grid) }
}
