//! The numbers that differ between the stages of Cascade R-CNN.

use serde::{Deserialize, Serialize};

/// Number of stages of the cascade.
pub const CASCADE_STAGES: usize = 3;

/// Cascade R-CNN (Cai and Vasconcelos 2018): three box heads, each trained on the boxes refined by the previous one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CascadeConfig {
    /// IoU from which a RoI is positive, and below which it is negative, in each stage.
    pub ious: [f32; CASCADE_STAGES],
    /// Standard deviations that box deltas are divided by, four for each stage.
    pub stds: [f32; 4 * CASCADE_STAGES],
    /// Weight of both losses of each stage.
    pub loss_weights: [f32; CASCADE_STAGES],
}

impl CascadeConfig {
    /// Standard deviations of the box deltas of a stage.
    pub fn stds_of(&self, stage: usize) -> [f32; 4] {
        std::array::from_fn(|i| self.stds[4 * stage + i])
    }
}

impl Default for CascadeConfig {
    fn default() -> Self {
        CascadeConfig {
            ious: [0.5, 0.6, 0.7],
            stds: [0.1, 0.1, 0.2, 0.2, 0.05, 0.05, 0.1, 0.1, 0.033, 0.033, 0.067, 0.067],
            loss_weights: [1.0, 0.5, 0.25],
        }
    }
}
