//! Launches of kernels/sample.cu.

use super::{SampleMode, Sampler};
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Threads of the block of an image, and of the other kernels.
const IMAGE_THREADS: u32 = 1024;
const THREADS: u32 = 256;

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

/// Mirror of the kernels' WithGtParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct WithGtParams {
    b: u32,
    g: u32,
    p: u32,
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
    // SAFETY: sample(idx, gt, counts, chosen, assigned, key, params): idx and gt [B,S], counts [B,2], chosen as `workspace` says
    // (mod.rs makes them), assigned [B,N], key [6] (checked in mod.rs); one block an image.
    unsafe { k.launch(Grid::blocks(b, IMAGE_THREADS)) }
}

pub(super) fn with_gt(out: &mut Tensor, assigned: &Tensor, gt_count: &Tensor, g: usize) -> Result<()> {
    let dim = |n| dim_u32("with_gt", n);
    let params = WithGtParams { b: dim(assigned.dim(0))?, g: dim(g)?, p: dim(assigned.dim(1))? };
    let (device, grid) = (out.device().clone(), Grid::stride(out.numel(), THREADS));
    let k = device.gpu().kernel("with_gt", DType::I32).out(out).arg(assigned).arg(gt_count).params(&params);
    // SAFETY: with_gt(out, assigned, gt_count, params): out [B,G+P], assigned [B,P], gt_count [B] (checked in mod.rs).
    unsafe { k.launch(grid) }
}

pub(super) fn boxes_with_gt(out: &mut Tensor, proposals: &Tensor, gt_boxes: &Tensor) -> Result<()> {
    let dim = |n| dim_u32("boxes_with_gt", n);
    let params = WithGtParams { b: dim(out.dim(0))?, g: dim(gt_boxes.dim(1))?, p: dim(proposals.dim(1))? };
    let (device, grid) = (out.device().clone(), Grid::stride(out.numel() / 4, THREADS));
    let k = device.gpu().kernel("boxes_with_gt", DType::F32).out(out).arg(proposals).arg(gt_boxes).params(&params);
    // SAFETY: boxes_with_gt(out, proposals, gt_boxes, params): out [B,G+P,4], proposals [B,P,4], gt_boxes [B,G,4] (checked in
    // mod.rs).
    unsafe { k.launch(grid) }
}

/// Mirror of the kernel's PositivesParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct PositivesParams {
    b: u32,
    s: u32,
    p: u32,
    first: u32,
}

pub(super) fn positives(out: &mut Tensor, gt: &Tensor, s: usize, first: usize, p: usize) -> Result<()> {
    let dim = |n| dim_u32("positives", n);
    let params = PositivesParams { b: dim(out.dim(0))?, s: dim(s)?, p: dim(p)?, first: dim(first)? };
    let (device, grid) = (out.device().clone(), Grid::stride(out.numel(), THREADS));
    let k = device.gpu().kernel("positives", DType::I32).out(out).arg(gt).params(&params);
    // SAFETY: positives(out, gt, params): out [B,P], gt [B,S], first + P at most S (checked in mod.rs).
    unsafe { k.launch(grid) }
}

pub(super) fn count_rows(out: &mut Tensor, idx: &Tensor, s: usize) -> Result<()> {
    let (device, blocks, s) = (out.device().clone(), out.numel(), dim_u32("count_rows", s)?);
    let k = device.gpu().kernel("count_rows", DType::I32).out(out).arg(idx).params(&s);
    // SAFETY: count_rows(out, idx, s): out [B], idx [B,S], one block for each of B rows (checked in mod.rs).
    unsafe { k.launch(Grid::blocks(blocks, THREADS)) }
}
