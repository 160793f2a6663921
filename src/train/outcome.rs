//! How a run ended, and what its final evaluation found.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::data::ImageStore;
use crate::detect::found::ImageDetections;
use crate::eval::Metrics;

/// Why the steps of a stage came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every step was taken.
    Done,
    /// The user asked for it (Ctrl-C).
    Interrupted,
    /// `--stop-after` was reached.
    Stopped,
}

impl Ended {
    /// The word in the log and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Ended::Done => "done",
            Ended::Interrupted => "interrupted",
            Ended::Stopped => "stopped",
        }
    }
}

/// How a run ended.
pub struct Outcome {
    /// Why it ended.
    pub ended: Ended,
    /// The evaluation of the final weights; `None` if the run did not come so far, or has no split to evaluate on.
    pub results: Option<Results>,
    /// Seconds of the run, including those before it was resumed.
    pub time_s: f64,
}

/// The final evaluation, on the test split if there is one, else on the validation split.
pub struct Results {
    /// "test" or "val".
    pub split: &'static str,
    /// The images behind the metrics.
    pub store: Arc<ImageStore>,
    /// Metrics of boxes.
    pub metrics: Metrics,
    /// Metrics of masks, where masks are measured.
    pub mask_metrics: Option<Metrics>,
    /// Detections behind the metrics, for pictures.
    pub detections: Vec<ImageDetections>,
}

impl Results {
    /// All metrics by key, such as `bbox_ap50`; 0 to 1.
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        [&self.metrics].into_iter().chain(&self.mask_metrics).flat_map(Metrics::by_key).collect()
    }
}
