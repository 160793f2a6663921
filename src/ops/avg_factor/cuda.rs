//! Launches of kernels/avg_factor.cu.

use super::AvgFactor;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernel's Params.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    kind: u32,
}

pub(super) fn forward(y: &mut Tensor, counts: &Tensor, kind: AvgFactor) -> Result<()> {
    let device = counts.device().clone();
    let kind = match kind {
        AvgFactor::Rpn => 0,
        AvgFactor::Roi => 1,
        AvgFactor::Dense => 2,
        AvgFactor::Positives => 3,
    };
    let params = Params { b: dim_u32("avg_factor", counts.dim(0))?, kind };
    let k = device.gpu().kernel("avg_factor", DType::F32).out(y).arg(counts).params(&params);
    // SAFETY: avg_factor(y, counts, params): counts [B,2], y of one element (checked in mod.rs).
    unsafe { k.launch(Grid::blocks(1, THREADS)) }
}
