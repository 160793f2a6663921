//! Launches of kernels/box_decode.cu.

use super::cpu::DecodeShape;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernel's BoxDecodeParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    stds: [f32; 4],
    b: u32,
    n: u32,
    k: u32,
    anchor_rows: u32,
}

pub(super) fn forward(
    y: &mut Tensor,
    anchors: &Tensor,
    deltas: &Tensor,
    idx: Option<&Tensor>,
    sizes: &Tensor,
    stds: [f32; 4],
    s: &DecodeShape,
) -> Result<()> {
    let dim = |n| dim_u32("box_decode", n);
    let anchor_rows = if s.shared { 0 } else { dim(s.n)? };
    let params = Params { stds, b: dim(s.b)?, n: dim(s.n)?, k: dim(s.k)?, anchor_rows };
    let device = y.device().clone();
    let k = device.gpu().kernel("box_decode", DType::F32).out(y).arg(anchors).arg(deltas).opt(idx).arg(sizes);
    // SAFETY: box_decode(y, anchors, deltas, idx, sizes, params): y [B,K,4], anchors [N,4] or [B,N,4] as anchor_rows
    // says, deltas [B,N,4], idx [B,K] or null (then K = N), sizes [B,4] (checked in mod.rs).
    unsafe { k.params(&params).launch(Grid::stride(s.b * s.k, THREADS)) }
}
