//! Launches of kernels/box_decode.cu.

use super::DecodeShape;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Runs of positions that one launch of valid_groups takes.
const RUNS: usize = 16;

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

/// Mirror of the kernel's ValidGroupsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GroupParams {
    b: u32,
    k: u32,
    end: u32,
    runs: u32,
    from: [u32; RUNS],
    group: [i32; RUNS],
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
    // SAFETY: box_decode(y, anchors, deltas, idx, sizes, params): y [B,K,4], anchors [N,4] or [B,N,4] as anchor_rows says,
    // deltas [B,N,4], idx [B,K] or null (then K = N), sizes [B,4] (checked in mod.rs).
    unsafe { k.params(&params).launch(Grid::stride(s.b * s.k, THREADS)) }
}

pub(super) fn valid_groups(y: &mut Tensor, boxes: &Tensor, idx: &Tensor, group_of: &[(usize, i32)]) -> Result<()> {
    let dim = |n| dim_u32("valid_groups", n);
    let (device, b, k) = (y.device().clone(), y.dim(0), y.dim(1));
    let mut begin = 0;
    for runs in group_of.chunks(RUNS) {
        let (mut from, mut group, mut end) = ([0; RUNS], [0; RUNS], begin);
        for (i, &(len, id)) in runs.iter().enumerate() {
            (from[i], group[i]) = (dim(end)?, id);
            end += len;
        }
        let params = GroupParams { b: dim(b)?, k: dim(k)?, end: dim(end)?, runs: dim(runs.len())?, from, group };
        let launch = device.gpu().kernel("valid_groups", DType::I32).out(y).arg(boxes).arg(idx).params(&params);
        // SAFETY: valid_groups(y, boxes, idx, params): y and idx [B,K], boxes [B,K,4]; the runs end at K (checked in mod.rs).
        unsafe { launch.launch(Grid::stride(b * (end - begin), THREADS))? };
        begin = end;
    }
    Ok(())
}

pub(super) fn proposals_from(y: &mut Tensor, idx: &Tensor, first: i32) -> Result<()> {
    let (device, n) = (y.device().clone(), y.numel());
    let k = device.gpu().kernel("proposals_from", DType::I32).out(y).arg(idx).params(&first).params(&(n as i64));
    // SAFETY: proposals_from(y, idx, first, n): both of n elements (checked in mod.rs).
    unsafe { k.launch(Grid::stride(n, THREADS)) }
}
