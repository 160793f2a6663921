//! Launches of kernels/sample.cu.

use super::{SampleMode, Sampler};
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Threads of the block of an image.
const IMAGE_THREADS: u32 = 1024;

/// Mirror of the kernel's SampleParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    n: u32,
    num: u32,
    quota: u32,
    purpose: i32,
}

/// Shape of the marks, i32: a bit for each candidate as a positive, and one as a negative.
pub(super) fn workspace(b: usize, n: usize) -> [usize; 3] {
    [b, 2, n.div_ceil(32)]
}

pub(super) fn sample(
    idx: &mut Tensor,
    gt: &mut Tensor,
    counts: &mut Tensor,
    marks: &mut Tensor,
    assigned: &Tensor,
    s: &Sampler,
    key: &Tensor,
) -> Result<()> {
    let dim = |n| dim_u32("sample", n);
    let (device, b) = (assigned.device().clone(), assigned.dim(0));
    let purpose = match s.mode {
        SampleMode::Random(purpose) => purpose as i32,
        SampleMode::Strided => -1,
    };
    let quota = ((s.num as f64 * s.pos_fraction) as usize).min(s.num);
    let params = Params { b: dim(b)?, n: dim(assigned.dim(1))?, num: dim(s.num)?, quota: dim(quota)?, purpose };
    let k = device.gpu().kernel("sample", DType::I32).out(idx).out(gt).out(counts).out(marks);
    let k = k.arg(assigned).arg(key).params(&params);
    // SAFETY: sample(idx, gt, counts, chosen, assigned, key, params): idx and gt [B,S], counts [B,2], chosen as
    // `workspace` says (mod.rs makes them), assigned [B,N], key [6] (checked in mod.rs); one block an image.
    unsafe { k.launch(Grid::blocks(b, IMAGE_THREADS)) }
}
