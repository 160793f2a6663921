//! Sums over chunks in f64: the workspace of the losses, which the plan device sees. Chunks are fixed and folded in order,
//! so that a sum does not depend on the number of threads.

use crate::device::Device;
use crate::device::gpu::dim_u32;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// One f64 a chunk. No tensor holds f64: each is eight bytes.
pub(crate) struct Partial(Tensor);

impl Partial {
    pub(crate) fn new(device: &Device, chunks: usize) -> Result<Partial> {
        Ok(Partial(Tensor::empty(device, &[chunks, size_of::<f64>()], DType::U8)?))
    }

    /// The slots, to be overwritten: what they hold before is garbage.
    pub(crate) fn slots(&mut self) -> &mut [f64] {
        bytemuck::cast_slice_mut(self.0.slice_mut::<u8>())
    }

    /// Number of slots.
    pub(crate) fn len(&self) -> usize {
        self.0.dim(0)
    }

    /// The slots as a kernel's `double*`.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// The slots as a kernel's `double*`, to be overwritten.
    pub(crate) fn tensor_mut(&mut self) -> &mut Tensor {
        &mut self.0
    }

    /// What the second launch of a loss is told.
    pub(crate) fn fold(&self, weight: f32) -> Result<FoldParams> {
        Ok(FoldParams { n: dim_u32("fold", self.len())?, weight })
    }
}

/// Mirror of FoldParams in kernels/common/loss.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
pub(crate) struct FoldParams {
    n: u32,
    weight: f32,
}
