//! Candidates of the final NMS of a detector without a background class: (anchor, class) pairs.

mod cpu;
mod cuda;

use super::class_candidates::Candidates;
use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "pair_candidates", gradient: Gradient::No("detections are read, not trained on") };

/// Rules for decoding the boxes and for selecting the pairs that become candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairRule {
    /// Standard deviations of the deltas.
    pub stds: [f32; 4],
    /// A candidate's score must be above this.
    pub score_threshold: f32,
    /// Both sides of a candidate's box (after scaling) must be above this; below 0, any size passes.
    pub min_size_px: f32,
}

/// Sizes of one call: `b` images, `p` pairs of `r` rows of `k` classes, `n` anchors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairShape {
    b: usize,
    r: usize,
    k: usize,
    n: usize,
    p: usize,
}

/// Returns the candidates of a detector without a background class: the (row, class) pairs of `logits` listed in
/// `pairs`, in that order, whose `sigmoid(logit)` is above the threshold. Index `r K + k` is class k of row r. The
/// anchor of row r is `rows[r]`, or r itself without `rows`; an invalid index (-1) is no candidate. Boxes are decoded
/// as in `box_decode`; all classes of an anchor share the same four deltas. With `scale`, boxes are multiplied by
/// `1 / scale`.
///
/// The probabilities of a row do not sum to 1, so the threshold does not bound the number of candidates. The length of
/// `pairs`, the best pairs from `top_k`, does. A pair that does not pass leaves padding (class -1) in its place, which
/// `nms` skips.
///
/// Shapes: logits `[B,R,K]` f32; pairs `[B,P]`, rows `[B,R]` i32; anchors `[N,4]`, shared by the images, deltas
/// `[B,N,4]`, sizes `[B,4]`, scale `[B,2]` (w, h) f32; without rows R = N; [`Candidates`] with P in place of N.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads and writes about 20·B·P; an exponential a pair, two more a candidate.
/// Errors: `Shape` if batches or rows differ; `Value` if the threshold is not a number.
/// Reference: mmdetection's `filter_scores_and_topk` and `_bbox_post_process` up to the NMS.
pub fn pair_candidates(
    logits: &Tensor,
    pairs: &Tensor,
    rows: Option<&Tensor>,
    anchors: &Tensor,
    deltas: &Tensor,
    sizes: &Tensor,
    scale: Option<&Tensor>,
    rule: PairRule,
) -> Result<Candidates> {
    let dev = logits.device();
    let _op = dev.enter("pair_candidates");
    let [b, r, k] = logits.dims("pair_candidates: logits")?;
    let [_, p] = pairs.dims("pair_candidates: pairs")?;
    let [_, n, _] = deltas.dims("pair_candidates: deltas")?;
    pairs.expect_shape("pair_candidates: pairs", &[b, p])?;
    deltas.expect_shape("pair_candidates: deltas", &[b, if rows.is_some() { n } else { r }, 4])?;
    anchors.expect_shape("pair_candidates: anchors", &[n, 4])?;
    sizes.expect_shape("pair_candidates: sizes", &[b, 4])?;
    pairs.expect_dtype("pair_candidates: pairs", DType::I32)?;
    for (what, t) in [("logits", logits), ("anchors", anchors), ("deltas", deltas), ("sizes", sizes)] {
        t.expect_dtype(&format!("pair_candidates: {what}"), DType::F32)?;
    }
    if let Some(rows) = rows {
        rows.expect_shape("pair_candidates: rows", &[b, r])?;
        rows.expect_dtype("pair_candidates: rows", DType::I32)?;
    }
    if let Some(scale) = scale {
        scale.expect_shape("pair_candidates: scale", &[b, 2])?;
        scale.expect_dtype("pair_candidates: scale", DType::F32)?;
    }
    if rule.score_threshold.is_nan() || rule.min_size_px.is_nan() {
        return Err(Error::value("pair_candidates", format!("{rule:?}: a threshold is not a number")));
    }
    let s = PairShape { b, r, k, n, p };
    let mut out = Candidates {
        boxes: Tensor::empty(dev, &[b, p, 4], DType::F32)?,
        scores: Tensor::empty(dev, &[b, p], DType::F32)?,
        classes: Tensor::empty(dev, &[b, p], DType::I32)?,
    };
    on_device!(
        dev,
        cpu => cpu::forward(
            (out.boxes.f32s_mut(), out.scores.f32s_mut(), out.classes.i32s_mut()),
            &cpu::Inputs {
                logits: logits.f32s(),
                pairs: pairs.i32s(),
                rows: rows.map(Tensor::i32s),
                anchors: anchors.f32s(),
                deltas: deltas.f32s(),
                sizes: sizes.f32s(),
                scale: scale.map(Tensor::f32s),
            },
            &rule,
            &s,
        ),
        cuda => {
            let inputs = cuda::Inputs { logits, pairs, rows, anchors, deltas, sizes, scale };
            cuda::forward(&mut out, &inputs, &rule, &s)
        },
    );
    Ok(out)
}
