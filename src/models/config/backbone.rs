//! The feature extractor's numbers.

use serde::{Deserialize, Serialize};

/// ResNet of He et al. 2016, "pytorch style" (the stride is in the 3×3 convolution), or Swin Transformer of Liu et al.
/// 2021.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackboneConfig {
    /// The family and depth.
    pub kind: BackboneKind,
    /// Multiplies every channel count (see [`BackboneConfig::channels`]).
    pub width: f32,
    /// Batch norm: epsilon added to the variance.
    pub norm_eps: f32,
    /// Batch norm: weight of the new batch in the running statistics.
    pub norm_momentum: f32,
    /// ResNet: initialise the scale of the last batch norm of every residual branch to 0.
    pub zero_init_residual: bool,
    /// Swin: side of an attention window in tokens (a token is 4×4 pixels in the first stage, 32×32 in the last).
    pub window: usize,
    /// Swin: initial values of its linear layers.
    pub init: SwinInit,
    /// Swin: probability of dropping a residual branch of the last block; it rises linearly from 0 in the first block.
    pub drop_path: f32,
}

/// Initial values of a Swin Transformer's linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwinInit {
    /// torch's `trunc_normal_` with deviation 0.02, whatever the number of channels. At first, the output of a residual
    /// branch is much smaller than its input, the more so the narrower the network.
    TruncNormal,
    /// Variance 1 / fan_in (LeCun et al. 1998): a layer keeps the magnitude of its input.
    LecunNormal,
}

/// Backbones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackboneKind {
    /// Basic blocks, 2-2-2-2.
    #[serde(rename = "resnet18")]
    Resnet18,
    /// Basic blocks, 3-4-6-3.
    #[serde(rename = "resnet34")]
    Resnet34,
    /// Bottleneck blocks, 3-4-6-3.
    #[serde(rename = "resnet50")]
    Resnet50,
    /// Bottleneck blocks, 3-4-23-3.
    #[serde(rename = "resnet101")]
    Resnet101,
    /// 96 channels, 2-2-6-2 blocks.
    #[serde(rename = "swin_t")]
    SwinT,
    /// 96 channels, 2-2-18-2 blocks.
    #[serde(rename = "swin_s")]
    SwinS,
    /// 128 channels, 2-2-18-2 blocks.
    #[serde(rename = "swin_b")]
    SwinB,
}

impl BackboneKind {
    /// Blocks in each of the four layers.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            BackboneKind::Resnet18 => [2, 2, 2, 2],
            BackboneKind::Resnet34 | BackboneKind::Resnet50 => [3, 4, 6, 3],
            BackboneKind::Resnet101 => [3, 4, 23, 3],
            BackboneKind::SwinT => [2, 2, 6, 2],
            BackboneKind::SwinS | BackboneKind::SwinB => [2, 2, 18, 2],
        }
    }

    /// Whether the backbone is a Swin Transformer.
    pub fn is_swin(self) -> bool {
        matches!(self, BackboneKind::SwinT | BackboneKind::SwinS | BackboneKind::SwinB)
    }

    /// ResNet: whether blocks are bottlenecks (1×1, 3×3, 1×1 with four times the channels) instead of two 3×3.
    pub fn bottleneck(self) -> bool {
        matches!(self, BackboneKind::Resnet50 | BackboneKind::Resnet101)
    }

    /// ResNet: output channels of a block relative to its inner channels.
    pub fn expansion(self) -> usize {
        if self.bottleneck() { 4 } else { 1 }
    }
}

impl BackboneConfig {
    /// Swin: channels of an attention head.
    pub const HEAD: usize = 32;

    /// ResNet: `base` channels (64, 128, 256, 512) times `width`, rounded to the nearest multiple of 8, at least 8.
    pub fn channels(&self, base: usize) -> usize {
        ((base as f32 * self.width / 8.0).round() as usize * 8).max(8)
    }

    /// Swin: channels after the patch embedding, 96 or 128 times `width`, rounded to whole attention heads.
    pub fn embed(&self) -> usize {
        let base = if self.kind == BackboneKind::SwinB { 128.0 } else { 96.0 };
        ((base * self.width / Self::HEAD as f32).round() as usize).max(1) * Self::HEAD
    }

    /// Channels of C2, C3, C4, C5.
    pub fn out_channels(&self) -> [usize; 4] {
        if self.kind.is_swin() {
            return [1, 2, 4, 8].map(|k| k * self.embed());
        }
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
            window: 7,
            init: SwinInit::TruncNormal,
            drop_path: 0.2,
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
        backbone = BackboneConfig { kind: BackboneKind::SwinT, width: 1.0, ..backbone };
        assert_eq!(backbone.out_channels(), [96, 192, 384, 768]);
        backbone.width = 0.3;
        assert_eq!(backbone.out_channels(), [32, 64, 128, 256], "whole heads");
    }
}
