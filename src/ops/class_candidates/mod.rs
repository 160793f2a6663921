//! The candidates of the final non-maximum suppression: (RoI or anchor, class) pairs whose probability passes the threshold.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "class_candidates", gradient: Gradient::No("detections are read, not trained on") };

/// Boxes with a score and a class, those of each image in front and padding behind.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// `[B,N,4]` f32; padding 0.
    pub boxes: Tensor,
    /// `[B,N]` f32; padding 0.
    pub scores: Tensor,
    /// `[B,N]` i32, foreground class; padding -1.
    pub classes: Tensor,
}

/// Sizes of one call; `groups` is K for class-specific deltas, 1 for class-agnostic ones; `n` candidates an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CandidateShape {
    b: usize,
    r: usize,
    k: usize,
    groups: usize,
    n: usize,
}

/// Largest number of K classes whose probabilities can all be above `threshold`: with `n` of them above `t` their sum is
/// above `n t`, and it is at most 1, so `n t < 1`.
///
/// A softmax in f32 adds up to 1 only within rounding; 1e-5 is above the error of 81 terms, (K + 1) 2^-24, and below what
/// would admit another class at any threshold of use. At 0.05 the answer is 20, where exact numbers would give 19.
pub fn max_classes(k: usize, threshold: f32) -> usize {
    const SUM_MAX: f64 = 1.0 + 1e-5;
    if threshold <= 0.0 {
        return k;
    }
    let n = (SUM_MAX / f64::from(threshold)).ceil() - 1.0;
    k.min(n as usize) // a huge quotient saturates
}

/// All (RoI, class) pairs with `probs > score_threshold`, RoI by RoI and in ascending class, the background (the last
/// class) left out. Boxes are decoded as `box_decode` does, only where the score passes; with `scale` they are multiplied
/// by `1 / scale`: from network pixels to those of the original image.
///
/// Shapes: probs `[B,R,K+1]`, deltas `[B,R,4K]` or `[B,R,4]`, rois `[B,R,4]` f32; valid `[B,R]` i32 (-1 = no RoI); sizes
/// `[B,4]` f32 (img_h, img_w, pad_h, pad_w); scale `[B,2]` f32 (w, h); [`Candidates`] with N = R·[`max_classes`]. If
/// probs are no probabilities, pairs beyond N are dropped.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads B·R·K probabilities, on a GPU twice, decodes the few that pass; one thread an image, on a GPU a warp a RoI.
/// Errors: `Shape` if batches, RoIs or classes differ; `Value` if the threshold is not a number.
/// Reference: mmdetection's `multiclass_nms` up to the suppression.
pub fn class_candidates(
    probs: &Tensor,
    deltas: &Tensor,
    rois: &Tensor,
    valid: &Tensor,
    sizes: &Tensor,
    stds: [f32; 4],
    score_threshold: f32,
    scale: Option<&Tensor>,
) -> Result<Candidates> {
    let dev = probs.device();
    let _op = dev.enter("class_candidates");
    let [b, r, columns] = probs.dims("class_candidates: probs")?;
    let Some(k) = columns.checked_sub(1) else {
        let (what, want) = ("class_candidates: probs".into(), "[B,R,K+1]".into());
        return Err(Error::Shape { what, want, got: probs.shape().to_vec() });
    };
    let groups = if deltas.shape().last() == Some(&4) { 1 } else { k };
    deltas.expect_shape("class_candidates: deltas", &[b, r, 4 * groups])?;
    rois.expect_shape("class_candidates: rois", &[b, r, 4])?;
    valid.expect_shape("class_candidates: valid", &[b, r])?;
    sizes.expect_shape("class_candidates: sizes", &[b, 4])?;
    valid.expect_dtype("class_candidates: valid", DType::I32)?;
    for (what, t) in [("probs", probs), ("deltas", deltas), ("rois", rois), ("sizes", sizes)] {
        t.expect_dtype(&format!("class_candidates: {what}"), DType::F32)?;
    }
    if let Some(scale) = scale {
        scale.expect_shape("class_candidates: scale", &[b, 2])?;
        scale.expect_dtype("class_candidates: scale", DType::F32)?;
    }
    if score_threshold.is_nan() {
        return Err(Error::value("class_candidates", "the score threshold is not a number"));
    }
    let s = CandidateShape { b, r, k, groups, n: r * max_classes(k, score_threshold) };
    let boxes = Tensor::empty(dev, &[b, s.n, 4], DType::F32)?;
    let scores = Tensor::empty(dev, &[b, s.n], DType::F32)?;
    let classes = Tensor::empty(dev, &[b, s.n], DType::I32)?;
    // Where kernels run: how many classes of each RoI pass.
    let mut passing = Tensor::empty(dev, &[if dev.runs_kernels() { b * r } else { 0 }], DType::I32)?;
    let mut out = Candidates { boxes, scores, classes };
    on_device!(
        dev,
        cpu => cpu::forward(
            (out.boxes.f32s_mut(), out.scores.f32s_mut(), out.classes.i32s_mut()),
            &cpu::Inputs {
                probs: probs.f32s(),
                deltas: deltas.f32s(),
                rois: rois.f32s(),
                valid: valid.i32s(),
                sizes: sizes.f32s(),
                scale: scale.map(Tensor::f32s),
            },
            &stds,
            score_threshold,
            &s,
        ),
        cuda => {
            let inputs = cuda::Inputs { probs, deltas, rois, valid, sizes, scale };
            cuda::forward(&mut out, &mut passing, &inputs, stds, score_threshold, &s)
        },
    );
    Ok(out)
}

/// Which pairs become candidates, and of what boxes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairRule {
    /// Of the deltas.
    pub stds: [f32; 4],
    /// Scores are above it.
    pub score_threshold: f32,
    /// Sides of boxes (after scaling) are above it; below 0: of any size.
    pub min_size_px: f32,
}

/// Candidates of a detector without a background class: those of the (row, class) pairs of `logits` named by `pairs`, in
/// their order, whose `sigmoid(logit)` passes the threshold. Position `r K + k` is class k of row r, whose anchor is
/// `rows[r]`, or r itself without rows; an index that names nothing (-1) is no candidate. Boxes are decoded as `box_decode`
/// does, for all classes of an anchor from the same four deltas; with `scale` they are multiplied by `1 / scale`.
///
/// The probabilities of a row have no sum that would bound how many pass: `pairs` does, as the best of them (`top_k`).
/// What does not pass leaves padding where it stood (class -1), which `nms` passes over.
///
/// Shapes: logits `[B,R,K]` f32; pairs `[B,P]`, rows `[B,R]` i32; anchors `[N,4]`, shared by the images, deltas `[B,N,4]`,
/// sizes `[B,4]`, scale `[B,2]` (w, h) f32; without rows R = N; [`Candidates`] with P in place of N.
/// Cost: reads and writes some 20·B·P; an exponential a pair, two more a candidate.
/// Errors: `Shape` if batches or rows differ; `Value` if the threshold is not a number.
/// Reference: mmdetection's `filter_scores_and_topk` and `_bbox_post_process` up to the suppression.
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
        cpu => cpu::pairs(
            (out.boxes.f32s_mut(), out.scores.f32s_mut(), out.classes.i32s_mut()),
            &cpu::PairInputs {
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
            let inputs = cuda::PairInputs { logits, pairs, rows, anchors, deltas, sizes, scale };
            cuda::pairs(&mut out, &inputs, &rule, &s)
        },
    );
    Ok(out)
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

/// The candidates that `keep` names, in its order; none (box 0, score 0, class -1) where it is outside `0..N` (-1).
///
/// Shapes: keep `[B,D]` i32; boxes `[B,D,4]` f32, scores `[B,D]` f32, classes `[B,D]` i32.
/// Cost: reads and writes 6·B·D.
/// Errors: `Shape` if keep is not `[B,D]`.
pub fn detections(candidates: &Candidates, keep: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    let _op = keep.device().enter("detections");
    let Candidates { boxes, scores, classes } = candidates;
    let [b, n] = scores.dims("detections: scores")?;
    let scores = super::gather_rows::take(&scores.reshape(&[b, n, 1])?, keep)?;
    Ok((
        super::gather_rows::take(boxes, keep)?,
        scores.reshape(keep.shape())?,
        super::gather_rows::take_i32(classes, keep, -1)?,
    ))
}
