//! Detections of a head that has classes and deltas for every anchor, without a background class (RetinaNet). The two
//! eras of mmdetection cut down the candidates of a level in different ways; [`Shortlist`] says how. Losses are not
//! here: their targets are `box_encode`'s `dense_targets`.

use super::anchors::Anchors;
use crate::detection::kept::detections;
use crate::error::Result;
use crate::ops::gather_rows::gather_rows_of;
use crate::ops::nms::{Nms, nms};
use crate::ops::pair_candidates::{PairRule, pair_candidates};
use crate::ops::row_max::row_max;
use crate::ops::top_k::top_k;
use crate::tensor::Tensor;

/// What is taken of each level before non-maximum suppression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shortlist {
    /// The `nms_pre` anchors with the best scores, all their classes: mmdetection 2 (2.13, the paper's).
    ///
    /// How many of their classes pass the threshold is known only from the values, and a step has fixed shapes: of all
    /// levels together the `max_pairs` best (anchor, class) pairs go on. Suppression goes from the best down, so this
    /// changes nothing if all that pass are at most `max_pairs`, or if `max_detections` of the `max_pairs` best
    /// survive.
    Anchors {
        /// Largest number of (anchor, class) pairs of an image.
        max_pairs: usize,
    },
    /// The `nms_pre` best (anchor, class) pairs; boxes with a side of `min_size_px` or less are dropped before
    /// suppression (below 0: none): mmdetection 3.
    Pairs {
        /// In pixels of the result.
        min_size_px: f32,
    },
}

/// How detections are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseConfig {
    /// Anchors or pairs of a level that go on.
    pub nms_pre: usize,
    /// What `nms_pre` counts.
    pub shortlist: Shortlist,
    /// Scores are above it.
    pub score_threshold: f32,
    /// Of the suppression within classes.
    pub nms_iou: f32,
    /// Detections of an image.
    pub max_detections: usize,
    /// Of the deltas.
    pub stds: [f32; 4],
}

/// Detections from raw outputs of all anchors, level after level: boxes `[B,D,4]` f32, scores `[B,D]` f32 and classes
/// `[B,D]` i32 (-1 behind the last), best first, D = `max_detections`. With `scale`, boxes are multiplied by `1 /
/// scale` before suppression: from network pixels to those of the original image.
///
/// Ranks go by logits, whose order is that of their probabilities; of equal ones the first anchor, then the first
/// class.
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
    // Segments of levels, of `each` entries an anchor.
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
