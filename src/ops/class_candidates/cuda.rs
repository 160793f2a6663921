//! Launches of kernels/class_candidates.cu.

use super::{CandidateShape, Candidates};
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// RoIs of a block: one a warp.
const ROIS: usize = THREADS as usize / 32;
/// Most blocks along y that a grid may have; the kernels loop over images.
const MAX_IMAGES: usize = 65_535;

/// Mirror of the kernels' ClassCandidatesParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    stds: [f32; 4],
    b: u32,
    r: u32,
    k: u32,
    groups: u32,
    n: u32,
    threshold: f32,
}

/// The inputs of the kernels.
pub(super) struct Inputs<'a> {
    pub(super) probs: &'a Tensor,
    pub(super) deltas: &'a Tensor,
    pub(super) rois: &'a Tensor,
    pub(super) valid: &'a Tensor,
    pub(super) sizes: &'a Tensor,
    pub(super) scale: Option<&'a Tensor>,
}

/// `passing` is a workspace, i32 `[B R]`: the number of classes of each RoI that pass the threshold.
pub(super) fn forward(
    out: &mut Candidates,
    passing: &mut Tensor,
    x: &Inputs<'_>,
    stds: [f32; 4],
    threshold: f32,
    s: &CandidateShape,
) -> Result<()> {
    if s.n == 0 {
        return Ok(());
    }
    let dim = |n| dim_u32("class_candidates", n);
    let (b, r, k, groups, n) = (dim(s.b)?, dim(s.r)?, dim(s.k)?, dim(s.groups)?, dim(s.n)?);
    let params = Params { stds, b, r, k, groups, n, threshold };
    let grid = Grid::blocks(s.r.div_ceil(ROIS), THREADS).y(s.b.min(MAX_IMAGES));
    let device = passing.device().clone();
    let k = device.gpu().kernel("class_candidates_count", DType::F32);
    let k = k.out(passing).arg(x.probs).arg(x.valid).params(&params);
    // SAFETY: class_candidates_count(passing, probs, valid, params): passing and valid [B,R], probs [B,R,K+1] (mod.rs).
    unsafe { k.launch(grid)? };
    let k = device.gpu().kernel("class_candidates", DType::F32);
    let k = k.out(&mut out.boxes).out(&mut out.scores).out(&mut out.classes).arg(passing);
    let k = k.arg(x.probs).arg(x.deltas).arg(x.rois).arg(x.valid).arg(x.sizes).opt(x.scale).params(&params);
    // SAFETY: class_candidates(boxes, scores, classes, passing, probs, deltas, rois, valid, sizes, scale, params):
    // boxes [B,N,4], scores and classes [B,N], deltas [B,R,4 groups], rois [B,R,4], sizes [B,4], scale [B,2] or null
    // (checked in mod.rs).
    unsafe { k.launch(grid) }
}
