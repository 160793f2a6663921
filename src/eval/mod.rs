//! COCO metrics of boxes and masks, computed by `hotcoco` (bit-identical to pycocotools), and detections in COCO's results
//! format.
//!
//! Main types: [`Evaluator`], [`Metrics`], [`ResultBox`]; [`Measured`] is an evaluation with its errors looked at.

mod errors;
#[cfg(test)]
mod errors_tests;
mod evaluator;
mod metrics;
mod results;

pub use errors::{Confusion, Look, Measured, TideTable};
pub use evaluator::Evaluator;
pub use metrics::{COCO_KEYS, ClassMetrics, Metrics, Overlap, SEGM_KEYS, per_class_json};
pub use results::{ResultBox, RleMask, read_results, write_results};
