//! The results that a recipe promises, which `train` compares with those of the finished run.

use serde::{Deserialize, Serialize};

/// The results that the finished run must reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectConfig {
    /// Split on which the results are measured.
    #[serde(default = "ExpectConfig::default_split")]
    pub split: ExpectSplit,
    /// COCO AP of boxes, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bbox_ap: Option<f64>,
    /// COCO AP at IoU 0.5, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bbox_ap50: Option<f64>,
    /// COCO AP of masks, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segm_ap: Option<f64>,
    /// COCO AP of masks at IoU 0.5, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segm_ap50: Option<f64>,
    /// Accepted shortfall, in percentage points.
    pub window: f64,
}

impl ExpectConfig {
    /// The results to reach: name of the metric, and value in per cent.
    pub fn metrics(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = [
            ("bbox_ap", self.bbox_ap),
            ("bbox_ap50", self.bbox_ap50),
            ("segm_ap", self.segm_ap),
            ("segm_ap50", self.segm_ap50),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    fn default_split() -> ExpectSplit {
        ExpectSplit::Val
    }
}

/// Splits on which the results of a run can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectSplit {
    /// `data.val`.
    Val,
    /// `data.test`.
    Test,
}
