//! Launches of kernels/cast.cu.

use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

pub(super) fn convert(y: &mut Tensor, x: &Tensor) -> Result<()> {
    let (device, n) = (x.device().clone(), x.numel());
    let gpu = device.gpu();
    let k = match y.dtype() {
        DType::F32 => gpu.kernel("cast_to_f32", x.dtype()),
        to => gpu.kernel("cast_from_f32", to),
    };
    let k = k.out(y).arg(x).params(&(n as i64));
    // SAFETY: cast(y, x, n): both of n elements; one is f32, the other of the type in the kernel's name (mod.rs).
    unsafe { k.launch(Grid::stride(n.div_ceil(4), THREADS)) }
}
