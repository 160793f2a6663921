//! Launches of kernels/pair_candidates.cu.

use super::{PairRule, PairShape};
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::ops::class_candidates::Candidates;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Mirror of the kernel's PairCandidatesParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    stds: [f32; 4],
    b: u32,
    r: u32,
    k: u32,
    n: u32,
    p: u32,
    threshold: f32,
    min_size_px: f32,
}

/// The inputs of the kernel.
pub(super) struct Inputs<'a> {
    pub(super) logits: &'a Tensor,
    pub(super) pairs: &'a Tensor,
    pub(super) rows: Option<&'a Tensor>,
    pub(super) anchors: &'a Tensor,
    pub(super) deltas: &'a Tensor,
    pub(super) sizes: &'a Tensor,
    pub(super) scale: Option<&'a Tensor>,
}

pub(super) fn forward(out: &mut Candidates, x: &Inputs<'_>, rule: &PairRule, s: &PairShape) -> Result<()> {
    let dim = |n| dim_u32("pair_candidates", n);
    let (b, r, k, n, p) = (dim(s.b)?, dim(s.r)?, dim(s.k)?, dim(s.n)?, dim(s.p)?);
    let (threshold, min_size_px) = (rule.score_threshold, rule.min_size_px);
    let params = Params { stds: rule.stds, b, r, k, n, p, threshold, min_size_px };
    let device = x.logits.device().clone();
    let k = device.gpu().kernel("pair_candidates", DType::F32);
    let k = k.out(&mut out.boxes).out(&mut out.scores).out(&mut out.classes).arg(x.logits).arg(x.pairs).opt(x.rows);
    let k = k.arg(x.anchors).arg(x.deltas).arg(x.sizes).opt(x.scale).params(&params);
    // SAFETY: pair_candidates(boxes, scores, classes, logits, pairs, rows, anchors, deltas, sizes, scale, params):
    // boxes [B,P,4], scores, classes and pairs [B,P], logits [B,R,K], rows [B,R] or null (then R = N), anchors [N,4],
    // deltas [B,N,4], sizes [B,4], scale [B,2] or null (checked in mod.rs).
    unsafe { k.launch(Grid::stride(s.b * s.p, THREADS)) }
}
