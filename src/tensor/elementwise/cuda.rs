//! Launches of kernels/elementwise.cu.

use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

/// One thread a 16-byte vector.
fn grid(t: &Tensor) -> Grid {
    Grid::stride(t.bytes().div_ceil(16), THREADS)
}

pub(super) fn add_assign(y: &mut Tensor, x: &Tensor) -> Result<()> {
    let (n, grid, device) = (y.numel() as i64, grid(y), y.device().clone());
    let k = device.gpu().kernel("add_assign", y.dtype()).out(y).arg(x).params(&n);
    // SAFETY: add_assign(y, x, n): both have n elements of one type (checked in mod.rs).
    unsafe { k.launch(grid) }
}

pub(super) fn copy(y: &mut Tensor, x: &Tensor) -> Result<()> {
    let (n, grid, device) = (y.numel() as i64, grid(y), y.device().clone());
    let k = device.gpu().kernel("copy", y.dtype()).out(y).arg(x).params(&n);
    // SAFETY: copy(y, x, n): both have n elements of one type (checked in mod.rs).
    unsafe { k.launch(grid) }
}

pub(super) fn fill(y: &mut Tensor, value: f32) -> Result<()> {
    let (n, grid, device) = (y.numel() as i64, grid(y), y.device().clone());
    let k = device.gpu().kernel("fill", y.dtype()).out(y).params(&value).params(&n);
    // SAFETY: fill(y, value, n): y has n elements.
    unsafe { k.launch(grid) }
}

pub(super) fn scale(y: &mut Tensor, factor: f32) -> Result<()> {
    let (n, grid, device) = (y.numel() as i64, grid(y), y.device().clone());
    let k = device.gpu().kernel("scale", y.dtype()).out(y).params(&factor).params(&n);
    // SAFETY: scale(y, factor, n): y has n elements.
    unsafe { k.launch(grid) }
}

/// `dx` holds dy and becomes dy where y is not clamped; all of one shape and type.
pub(crate) fn relu_mask(dx: &mut Tensor, y: &Tensor) -> Result<()> {
    let (n, grid, device) = (dx.numel() as i64, grid(dx), dx.device().clone());
    let k = device.gpu().kernel("relu_mask", y.dtype()).out(dx).arg(y).params(&n);
    // SAFETY: relu_mask(dx, y, n): both have n elements of one type (`relu_gradient`).
    unsafe { k.launch(grid) }
}
