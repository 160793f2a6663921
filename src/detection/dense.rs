//! Detections of a head that predicts classes and deltas for every anchor, without a background class (RetinaNet).
//! mmdetection 2 and 3 select the candidates of a level in different ways; [`Shortlist`] chooses one. Losses are not
//! here: the op `dense_targets` computes their targets.

use super::anchors::Anchors;
use crate::detection::kept::detections;
use crate::error::Result;
use crate::ops::gather_rows::gather_rows_of;
use crate::ops::nms::{Nms, nms};
use crate::ops::pair_candidates::{PairRule, pair_candidates};
use crate::ops::row_max::row_max;
use crate::ops::top_k::top_k;
use crate::tensor::Tensor;

/// The candidates taken from each level before non-maximum suppression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shortlist {
    /// The `nms_pre` anchors with the best scores, each with all its classes: mmdetection 2 (2.13, the paper's).
    ///
    /// The number of classes that pass the threshold depends on the values, but the shapes of a step are fixed. So only
    /// the `max_pairs` best (anchor, class) pairs of all levels together enter suppression. Suppression goes from the
    /// best pair down, so this changes nothing if at most `max_pairs` pairs pass the threshold, or if `max_detections`
    /// of the `max_pairs` best survive.
    Anchors {
        /// Number of (anchor, class) pairs of an image that enter suppression.
        max_pairs: usize,
    },
    /// The `nms_pre` best (anchor, class) pairs: mmdetection 3. Boxes with a side of `min_size_px` or less are dropped
    /// before suppression (below 0: none are).
    Pairs {
        /// Largest side, in pixels of the result, of a box that is dropped.
        min_size_px: f32,
    },
}

/// Parameters of [`dense_detections`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseConfig {
    /// Number of anchors or pairs taken from each level.
    pub nms_pre: usize,
    /// Whether `nms_pre` counts anchors or (anchor, class) pairs.
    pub shortlist: Shortlist,
    /// Detections need a score above this.
    pub score_threshold: f32,
    /// IoU threshold of the suppression within classes.
    pub nms_iou: f32,
    /// Number D of detection slots of an image.
    pub max_detections: usize,
    /// Standard deviations that box deltas are multiplied by when they are decoded.
    pub stds: [f32; 4],
}

/// Computes detections from the raw outputs of all anchors, in the order of [`Anchors`]: boxes `[B,D,4]` f32, scores
/// `[B,D]` f32 and classes `[B,D]` i32 (-1 after the last detection), best first, D = `max_detections`. With `scale`,
/// boxes are multiplied by `1 / scale` before suppression, from network pixels to pixels of the original image.
///
/// Candidates are ranked by logits, which have the same order as probabilities. Equal logits are ranked by anchor
/// index, then by class index.
///
/// Shapes: logits `[B,N,K]`, deltas `[B,N,4]`, sizes `[B,4]` (img_h, img_w, pad_h, pad_w), scale `[B,2]` (w, h), all
/// f32.
/// Cost: one pass over the logits; workspace on a GPU 8·B·N·K bytes for [`Shortlist::Pairs`].
/// Errors: `Shape`, `Dtype`, `Value` of the ops.
/// Reference: mmdetection 2.13 `AnchorHead.get_bboxes`; 3.3 `BaseDenseHead.predict_by_feat`.
pub fn dense_detections(
    logits: &Tensor,
    deltas: &Tensor,
    anchors: &Anchors,
    sizes: &Tensor,
    scale: Option<&Tensor>,
    cfg: &DenseConfig,
) -> Result<(Tensor, Tensor, Tensor)> {
    let [b, n, k] = logits.dims("dense_detections: logits")?;
    let rule = |min_size_px| PairRule { stds: cfg.stds, score_threshold: cfg.score_threshold, min_size_px };
    // The segment of each level as (start, length, number to take), with `each` entries per anchor.
    let levels = |each: usize| {
        let mut start = 0;
        let segment = |len: usize| {
            let len = len * each;
            start += len;
            (start - len, len, cfg.nms_pre.min(len))
        };
        anchors.level_sizes().into_iter().map(segment).collect::<Vec<_>>()
    };
    let candidates = match cfg.shortlist {
        Shortlist::Anchors { max_pairs } => {
            let best = top_k(&row_max(logits)?, &levels(1))?;
            let chosen = gather_rows_of(logits, &best)?;
            let all = best.dim(1) * k;
            let pairs = top_k(&chosen.reshape(&[b, all])?, &[(0, all, max_pairs.min(all))])?;
            pair_candidates(&chosen, &pairs, Some(&best), &anchors.boxes, deltas, sizes, scale, rule(-1.0))?
        }
        Shortlist::Pairs { min_size_px } => {
            let pairs = top_k(&logits.reshape(&[b, n * k])?, &levels(k))?;
            pair_candidates(logits, &pairs, None, &anchors.boxes, deltas, sizes, scale, rule(min_size_px))?
        }
    };
    let how = Nms { iou_threshold: cfg.nms_iou, groups: k, max_out: cfg.max_detections, offset: true };
    let keep = nms(&candidates.boxes, &candidates.scores, &candidates.classes, how)?;
    detections(&candidates, &keep)
}
