//! The feature pyramid's numbers.

use serde::{Deserialize, Serialize};

/// Feature pyramid network (Lin et al. 2017).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FpnConfig {
    /// Channels of every level.
    pub channels: usize,
    /// Number of levels, counted from `start`: P2 to P6 are 5.
    pub levels: usize,
    /// The finest level: 2 is P2, 3 is P3.
    pub start: usize,
    /// The operation that makes levels above P5.
    pub extra: FpnExtra,
    /// Apply a ReLU between the convolutions above P5.
    pub extra_relu: bool,
}

/// The operation that makes levels above P5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FpnExtra {
    /// Every second pixel of the level below.
    Subsample,
    /// A 3×3 convolution of stride 2 on C5, and another on P6.
    ConvC5,
    /// A 3×3 convolution of stride 2 on P5, and another on P6.
    ConvP5,
}

impl FpnConfig {
    /// Stride of each level in pixels.
    pub fn strides(&self) -> Vec<usize> {
        (self.start..self.start + self.levels).map(|l| 1 << l).collect()
    }
}

impl Default for FpnConfig {
    fn default() -> Self {
        FpnConfig { channels: 256, levels: 5, start: 2, extra: FpnExtra::Subsample, extra_relu: false }
    }
}
