//! RetinaNet's numbers.

use serde::{Deserialize, Serialize};

use crate::detection::anchors::AnchorShapes;

/// RetinaNet's head (Lin et al. 2017): classes and deltas of every anchor, trained with the focal loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetinaHeadConfig {
    /// Number of 3×3 convolutions in each of the two branches.
    pub convs: usize,
    /// Channels of the convolutions.
    pub channels: usize,
    /// Side of a level's smallest anchors in strides.
    pub octave_scale: f32,
    /// Number of anchor sides from one power of two up to the next.
    pub scales_per_octave: usize,
    /// Ratios of anchor height to width.
    pub anchor_ratios: Vec<f32>,
    /// Whether anchor corners are rounded to whole pixels.
    pub anchor_rounding: bool,
    /// Stride of each level in pixels.
    pub strides: Vec<usize>,
    /// IoU from which an anchor is positive.
    pub pos_iou: f32,
    /// IoU below which an anchor is negative.
    pub neg_iou: f32,
    /// Least IoU with which a ground-truth box may claim its best anchors.
    pub min_pos_iou: f32,
    /// Number of pixels by which an anchor may reach beyond the image; negative: no limit.
    pub allowed_border: f32,
    /// Standard deviations that box deltas are divided by.
    pub stds: [f32; 4],
    /// Focal loss: weight of positives.
    pub focal_alpha: f32,
    /// Focal loss: exponent of one minus the probability of the true class.
    pub focal_gamma: f32,
    /// Initial probability of each class at every anchor.
    pub prior: f32,
    /// Weight of the classification loss.
    pub cls_loss_weight: f32,
    /// Weight of the box loss.
    pub box_loss_weight: f32,
    /// Error at which smooth L1 turns linear; 0 is plain L1.
    pub smooth_l1_beta: f32,
    /// The candidates kept in each level before NMS: whole anchors or (anchor, class) pairs.
    pub selection: Selection,
    /// Number of candidates kept in each level before NMS.
    pub nms_pre: usize,
    /// With `anchors`: number of (anchor, class) pairs, the best of all levels, that enter NMS. It should exceed the
    /// number of pairs that pass the score threshold.
    pub max_pairs: usize,
    /// Detections need a score above this.
    pub score_threshold: f32,
    /// IoU threshold of the NMS within classes.
    pub nms_iou: f32,
    /// Largest number of detections per image.
    pub max_detections: usize,
}

/// The candidates kept in each level before non-maximum suppression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// The anchors with the best scores, each with all its classes (mmdetection 2, the paper's).
    Anchors,
    /// The best (anchor, class) pairs (mmdetection 3, torchvision, detectron2).
    Pairs,
}

impl RetinaHeadConfig {
    /// The shapes of the head's anchors.
    pub fn anchors(&self) -> AnchorShapes {
        let n = self.scales_per_octave;
        let scale = |i: usize| (f64::from(self.octave_scale) * 2f64.powf(i as f64 / n as f64)) as f32;
        AnchorShapes {
            scales: (0..n).map(scale).collect(),
            ratios: self.anchor_ratios.clone(),
            strides_px: self.strides.clone(),
            rounded: self.anchor_rounding,
        }
    }
}

impl Default for RetinaHeadConfig {
    fn default() -> Self {
        RetinaHeadConfig {
            convs: 4,
            channels: 256,
            octave_scale: 4.0,
            scales_per_octave: 3,
            anchor_ratios: vec![0.5, 1.0, 2.0],
            anchor_rounding: false,
            strides: vec![8, 16, 32, 64, 128],
            pos_iou: 0.5,
            neg_iou: 0.4,
            min_pos_iou: 0.0,
            allowed_border: -1.0,
            stds: [1.0; 4],
            focal_alpha: 0.25,
            focal_gamma: 2.0,
            prior: 0.01,
            cls_loss_weight: 1.0,
            box_loss_weight: 1.0,
            smooth_l1_beta: 0.0,
            selection: Selection::Anchors,
            nms_pre: 1000,
            max_pairs: 4096,
            score_threshold: 0.05,
            nms_iou: 0.5,
            max_detections: 100,
        }
    }
}
