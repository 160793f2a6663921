//! The region proposal network's numbers.

use serde::{Deserialize, Serialize};

use crate::detection::anchors::AnchorShapes;

/// Region proposal network (Ren et al. 2015).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RpnConfig {
    /// Channels of the shared 3×3 convolution.
    pub channels: usize,
    /// Anchor sides in strides.
    pub anchor_scales: Vec<f32>,
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
    /// Anchors sampled from an image.
    pub samples: usize,
    /// Share of the samples that may be positive.
    pub pos_fraction: f64,
    /// Number of pixels by which an anchor may reach beyond the image; negative: no limit.
    pub allowed_border: f32,
    /// Standard deviations that box deltas are divided by.
    pub stds: [f32; 4],
    /// Error at which smooth L1 turns linear; 0 is plain L1.
    pub smooth_l1_beta: f32,
    /// Weight of the objectness loss.
    pub cls_loss_weight: f32,
    /// Weight of the box loss.
    pub box_loss_weight: f32,
    /// Number of boxes kept in each level before NMS in training.
    pub train_nms_pre: usize,
    /// Largest number of proposals per image in training.
    pub train_max: usize,
    /// Number of boxes kept in each level before NMS in evaluation.
    pub test_nms_pre: usize,
    /// Largest number of proposals per image in evaluation.
    pub test_max: usize,
    /// IoU threshold of the NMS.
    pub nms_iou: f32,
}

impl RpnConfig {
    /// The shapes of the head's anchors.
    pub fn anchors(&self) -> AnchorShapes {
        AnchorShapes {
            scales: self.anchor_scales.clone(),
            ratios: self.anchor_ratios.clone(),
            strides_px: self.strides.clone(),
            rounded: self.anchor_rounding,
        }
    }
}

impl Default for RpnConfig {
    fn default() -> Self {
        RpnConfig {
            channels: 256,
            anchor_scales: vec![8.0],
            anchor_ratios: vec![0.5, 1.0, 2.0],
            anchor_rounding: false,
            strides: vec![4, 8, 16, 32, 64],
            pos_iou: 0.7,
            neg_iou: 0.3,
            min_pos_iou: 0.3,
            samples: 256,
            pos_fraction: 0.5,
            allowed_border: -1.0,
            stds: [1.0; 4],
            smooth_l1_beta: 0.0,
            cls_loss_weight: 1.0,
            box_loss_weight: 1.0,
            train_nms_pre: 2000,
            train_max: 1000,
            test_nms_pre: 1000,
            test_max: 1000,
            nms_iou: 0.7,
        }
    }
}
