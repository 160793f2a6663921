//! Launches of kernels/valid_groups.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Runs of positions that one launch of valid_groups takes.
const RUNS: usize = 16;

/// Mirror of the kernel's ValidGroupsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    k: u32,
    end: u32,
    runs: u32,
    from: [u32; RUNS],
    group: [i32; RUNS],
}

pub(super) fn forward(y: &mut Tensor, boxes: &Tensor, idx: &Tensor, group_of: &[(usize, i32)]) -> Result<()> {
    let dim = |n| dim_u32("valid_groups", n);
    let (device, b, k) = (y.device().clone(), y.dim(0), y.dim(1));
    let mut begin = 0;
    for runs in group_of.chunks(RUNS) {
        let (mut from, mut group, mut end) = ([0; RUNS], [0; RUNS], begin);
        for (i, &(len, id)) in runs.iter().enumerate() {
            (from[i], group[i]) = (dim(end)?, id);
            end += len;
        }
        let params = Params { b: dim(b)?, k: dim(k)?, end: dim(end)?, runs: dim(runs.len())?, from, group };
        let launch = device.gpu().kernel("valid_groups", DType::I32).out(y).arg(boxes).arg(idx).params(&params);
        // SAFETY: valid_groups(y, boxes, idx, params): y and idx [B,K], boxes [B,K,4]; the runs end at K (checked in
        // mod.rs).
        unsafe { launch.launch(Grid::stride(b * (end - begin), THREADS))? };
        begin = end;
    }
    Ok(())
}
