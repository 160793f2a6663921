//! The mask head's numbers.

use serde::{Deserialize, Serialize};

/// Mask head (He et al. 2017): 3×3 convolutions, a 2×2 transposed convolution, one mask for each class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskHeadConfig {
    /// Number of 3×3 convolutions.
    pub convs: usize,
    /// Channels of the convolutions.
    pub channels: usize,
    /// Side of the pooled features; masks have twice this side.
    pub pool: usize,
    /// RoIAlign samples per bin and axis; 0 adapts their number to the size of the RoI.
    pub sampling_ratio: usize,
    /// Whether RoIAlign shifts coordinates by half a pixel to pixel centres (`aligned`).
    pub aligned: bool,
    /// Weight of the loss.
    pub loss_weight: f32,
    /// Least probability of a pixel that belongs to a detection's mask.
    pub threshold: f32,
}

impl Default for MaskHeadConfig {
    fn default() -> Self {
        MaskHeadConfig {
            convs: 4,
            channels: 256,
            pool: 14,
            sampling_ratio: 0,
            aligned: true,
            loss_weight: 1.0,
            threshold: 0.5,
        }
    }
}
