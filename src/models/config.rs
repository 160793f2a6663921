//! The `[model]` table of a recipe: what is built, with every number that the paper states.
//!
//! Defaults are the paper's Faster R-CNN R50-FPN (PAPER: mmdetection 2.x configurations of arXiv 2106.03112). Every key is
//! documented, with its source, in `train::recipe_keys` and docs/recipes.md; this file only holds the values.

use serde::{Deserialize, Serialize};

/// A whole detector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Which detector.
    pub detector: Detector,
    /// The feature extractor.
    pub backbone: BackboneConfig,
    /// The feature pyramid.
    pub fpn: FpnConfig,
    /// The region proposal network.
    pub rpn: RpnConfig,
    /// The second stage's box head.
    pub box_head: BoxHeadConfig,
}

/// Detector families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// Ren et al. 2015, with a feature pyramid (Lin et al. 2017).
    #[default]
    FasterRcnn,
}

/// ResNet of He et al. 2016, "pytorch style": the stride is in the 3×3 convolution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackboneConfig {
    /// Depth.
    pub kind: BackboneKind,
    /// Multiplies every channel count (see [`BackboneConfig::channels`]).
    pub width: f32,
    /// Batch norm: added to the variance.
    pub norm_eps: f32,
    /// Batch norm: share of the new batch in the running statistics.
    pub norm_momentum: f32,
    /// Start every residual branch at zero (the scale of its last batch norm).
    pub zero_init_residual: bool,
}

/// ResNet depths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackboneKind {
    /// Basic blocks, 2-2-2-2.
    Resnet18,
    /// Basic blocks, 3-4-6-3.
    Resnet34,
    /// Bottleneck blocks, 3-4-6-3.
    Resnet50,
    /// Bottleneck blocks, 3-4-23-3.
    Resnet101,
}

impl BackboneKind {
    /// Blocks in each of the four layers.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            BackboneKind::Resnet18 => [2, 2, 2, 2],
            BackboneKind::Resnet34 | BackboneKind::Resnet50 => [3, 4, 6, 3],
            BackboneKind::Resnet101 => [3, 4, 23, 3],
        }
    }

    /// Whether blocks are bottlenecks (1×1, 3×3, 1×1 with four times the channels) instead of two 3×3.
    pub fn bottleneck(self) -> bool {
        matches!(self, BackboneKind::Resnet50 | BackboneKind::Resnet101)
    }

    /// Output channels of a block relative to its inner channels.
    pub fn expansion(self) -> usize {
        if self.bottleneck() { 4 } else { 1 }
    }
}

impl BackboneConfig {
    /// `base` channels (64, 128, 256, 512) times `width`, rounded to the nearest multiple of 8, at least 8.
    pub fn channels(&self, base: usize) -> usize {
        ((base as f32 * self.width / 8.0).round() as usize * 8).max(8)
    }

    /// Channels of C2, C3, C4, C5.
    pub fn out_channels(&self) -> [usize; 4] {
        [64, 128, 256, 512].map(|base| self.channels(base) * self.kind.expansion())
    }
}

impl Default for BackboneConfig {
    fn default() -> Self {
        BackboneConfig {
            kind: BackboneKind::Resnet50,
            width: 1.0,
            norm_eps: 1e-5,
            norm_momentum: 0.1,
            zero_init_residual: false,
        }
    }
}

/// Feature pyramid network (Lin et al. 2017).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FpnConfig {
    /// Channels of every level.
    pub channels: usize,
    /// Levels: 4 are P2 to P5, the fifth is P6, every second pixel of P5.
    pub levels: usize,
}

impl Default for FpnConfig {
    fn default() -> Self {
        FpnConfig { channels: 256, levels: 5 }
    }
}

/// Region proposal network (Ren et al. 2015).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RpnConfig {
    /// Channels of the shared 3×3 convolution.
    pub channels: usize,
    /// Anchor side in strides.
    pub anchor_scales: Vec<f32>,
    /// Anchor height over width.
    pub anchor_ratios: Vec<f32>,
    /// Stride of each level in pixels.
    pub strides: Vec<usize>,
    /// IoU from which an anchor is positive.
    pub pos_iou: f32,
    /// IoU below which an anchor is negative.
    pub neg_iou: f32,
    /// Least IoU with which a box may claim its best anchors.
    pub min_pos_iou: f32,
    /// Anchors sampled from an image.
    pub samples: usize,
    /// Share of the samples that may be positive.
    pub pos_fraction: f64,
    /// Pixels that an anchor may leave the image; negative: no limit.
    pub allowed_border: f32,
    /// Standard deviations that box deltas are divided by.
    pub stds: [f32; 4],
    /// Smooth L1 turns linear here; 0 is plain L1.
    pub smooth_l1_beta: f32,
    /// Weight of the objectness loss.
    pub cls_loss_weight: f32,
    /// Weight of the box loss.
    pub box_loss_weight: f32,
    /// Boxes kept per level before NMS in training.
    pub train_nms_pre: usize,
    /// Proposals per image in training.
    pub train_max: usize,
    /// Boxes kept per level before NMS in evaluation.
    pub test_nms_pre: usize,
    /// Proposals per image in evaluation.
    pub test_max: usize,
    /// NMS threshold.
    pub nms_iou: f32,
}

impl RpnConfig {
    /// Anchors of one cell.
    pub fn anchors_per_cell(&self) -> usize {
        self.anchor_scales.len() * self.anchor_ratios.len()
    }
}

impl Default for RpnConfig {
    fn default() -> Self {
        RpnConfig {
            channels: 256,
            anchor_scales: vec![8.0],
            anchor_ratios: vec![0.5, 1.0, 2.0],
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
    /// RoIAlign samples per bin and axis; 0 adapts to the size of the RoI.
    pub sampling_ratio: usize,
    /// RoIs with a side below twice this come from P2, below four times from P3, and so on.
    pub finest_scale: f32,
    /// RoIs sampled from an image.
    pub samples: usize,
    /// Share of the samples that may be positive.
    pub pos_fraction: f64,
    /// IoU from which a RoI is positive.
    pub pos_iou: f32,
    /// IoU below which a RoI is negative.
    pub neg_iou: f32,
    /// Least IoU with which a box may claim its best RoIs (with `match_low_quality`).
    pub min_pos_iou: f32,
    /// Let each box claim its best RoIs.
    pub match_low_quality: bool,
    /// Add the ground truth to the proposals.
    pub add_gt: bool,
    /// Standard deviations that box deltas are divided by.
    pub stds: [f32; 4],
    /// One set of deltas for all classes.
    pub class_agnostic: bool,
    /// Smooth L1 turns linear here; 0 is plain L1.
    pub smooth_l1_beta: f32,
    /// Weight of the classification loss.
    pub cls_loss_weight: f32,
    /// Weight of the box loss.
    pub box_loss_weight: f32,
    /// Detections need a score above this.
    pub score_threshold: f32,
    /// NMS threshold of each class.
    pub nms_iou: f32,
    /// Detections per image.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_follow_width() {
        let mut backbone = BackboneConfig::default();
        assert_eq!(backbone.out_channels(), [256, 512, 1024, 2048]);
        backbone = BackboneConfig { kind: BackboneKind::Resnet18, width: 0.5, ..backbone };
        assert_eq!(backbone.out_channels(), [32, 64, 128, 256]);
        backbone.width = 0.01;
        assert_eq!(backbone.channels(64), 8, "never below one vector");
    }
}
