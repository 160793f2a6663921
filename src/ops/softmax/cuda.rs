//! Launches of kernels/softmax.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

/// Mirror of the kernel's SoftmaxParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    m: u32,
    k: u32,
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, k: usize) -> Result<()> {
    let (device, m) = (x.device().clone(), x.numel().checked_div(k).unwrap_or(0));
    let params = Params { m: dim_u32("softmax", m)?, k: dim_u32("softmax", k)? };
    let kernel = device.gpu().kernel("softmax", x.dtype()).out(y).arg(x).params(&params);
    // SAFETY: softmax(y, x, params): both [M,K] (checked in mod.rs).
    unsafe { kernel.launch(Grid::stride(m * 32, THREADS)) }
}
