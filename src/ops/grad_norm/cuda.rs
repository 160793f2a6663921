//! Launches of kernels/grad_norm.cu.

use crate::device::gpu::Grid;
use crate::error::Result;
pub(super) use crate::ops::common::multi_tensor::chunks;
use crate::ops::common::multi_tensor::{Entry, launches};
use crate::tensor::{DType, Tensor};

const FOLD_THREADS: u32 = 1024;

/// `squares` has eight bytes, an f64, for each of the [`chunks`] of the gradients.
pub(super) fn norm(norm: &mut Tensor, squares: &mut Tensor, grads: &[&Tensor]) -> Result<()> {
    let device = norm.device().clone();
    launches(grads.iter().map(|g| Entry::new(g.numel(), 0.0).arg(g)), |list, grid| {
        let k = device.gpu().kernel("grad_norm_chunks", DType::F32).out(squares).params(list);
        // SAFETY: grad_norm_chunks(squares, list): a list of gradients, f32, a slot for each of their chunks (mod.rs).
        unsafe { k.launch(grid) }
    })?;
    let n = squares.dim(0) as i64;
    let k = device.gpu().kernel("grad_norm", DType::F32).out(norm).arg(squares).params(&n);
    // SAFETY: grad_norm(norm, squares, n): n slots, all written above; norm of one element.
    unsafe { k.launch(Grid::blocks(1, FOLD_THREADS)) }
}
