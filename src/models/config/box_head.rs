//! The second stage's numbers.

use serde::{Deserialize, Serialize};

/// Shapes of a box head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxHeadKind {
    /// Four 3×3 convolutions, one fully connected layer (the paper's Faster and Mask R-CNN).
    #[serde(rename = "shared_4conv_1fc")]
    Shared4Conv1Fc,
    /// Two fully connected layers (torchvision's and the original one).
    #[serde(rename = "shared_2fc")]
    Shared2Fc,
}

/// Second stage: RoI features, samples, head, losses, detections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoxHeadConfig {
    /// Shape of the head.
    pub kind: BoxHeadKind,
    /// Channels of the convolutions (`shared_4conv_1fc`).
    pub conv_channels: usize,
    /// Channels of the fully connected layers.
    pub fc_channels: usize,
    /// Side of the pooled features.
    pub pool: usize,
    /// RoIAlign samples per bin and axis; 0 adapts their number to the size of the RoI.
    pub sampling_ratio: usize,
    /// Whether RoIAlign shifts coordinates by half a pixel to pixel centres (`aligned`).
    pub aligned: bool,
    /// RoIs with a side below twice this are pooled from P2, below four times this from P3, and so on.
    pub finest_scale: f32,
    /// RoIs sampled from an image.
    pub samples: usize,
    /// Share of the samples that may be positive.
    pub pos_fraction: f64,
    /// IoU from which a RoI is positive.
    pub pos_iou: f32,
    /// IoU below which a RoI is negative.
    pub neg_iou: f32,
    /// Least IoU with which a ground-truth box may claim its best RoIs (with `match_low_quality`).
    pub min_pos_iou: f32,
    /// Let each ground-truth box claim its best RoIs.
    pub match_low_quality: bool,
    /// Add the ground truth to the proposals.
    pub add_gt: bool,
    /// Standard deviations that box deltas are divided by.
    pub stds: [f32; 4],
    /// Predict one set of deltas for all classes instead of one per class.
    pub class_agnostic: bool,
    /// Error at which smooth L1 turns linear; 0 is plain L1.
    pub smooth_l1_beta: f32,
    /// Weight of the classification loss.
    pub cls_loss_weight: f32,
    /// Weight of the box loss.
    pub box_loss_weight: f32,
    /// Detections need a score above this.
    pub score_threshold: f32,
    /// IoU threshold of the NMS within classes.
    pub nms_iou: f32,
    /// Largest number of detections per image.
    pub max_detections: usize,
}

impl Default for BoxHeadConfig {
    fn default() -> Self {
        BoxHeadConfig {
            kind: BoxHeadKind::Shared4Conv1Fc,
            conv_channels: 256,
            fc_channels: 1024,
            pool: 7,
            sampling_ratio: 0,
            aligned: true,
            finest_scale: 56.0,
            samples: 512,
            pos_fraction: 0.25,
            pos_iou: 0.5,
            neg_iou: 0.5,
            min_pos_iou: 0.5,
            match_low_quality: false,
            add_gt: true,
            stds: [0.1, 0.1, 0.2, 0.2],
            class_agnostic: false,
            smooth_l1_beta: 0.0,
            cls_loss_weight: 1.0,
            box_loss_weight: 1.0,
            score_threshold: 0.05,
            nms_iou: 0.5,
            max_detections: 100,
        }
    }
}
