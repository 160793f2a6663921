//! COCO metrics of boxes and masks, computed by `hotcoco` (bit-identical to pycocotools), and detections in COCO's
//! results format.
//!
//! Not here: running a detector (`detect`), and drawing what it found (`data::draw`).
//!
//! Main type: [`Evaluator`], the ground truth of a data set; it turns detections ([`ResultBox`]) into [`Metrics`], and
//! with an error analysis into [`Measured`]. Read next: `evaluator`, then `metrics` (the numbers) and `errors` (TIDE,
//! confusion).

mod errors;
mod evaluator;
mod metrics;
mod results;
#[cfg(test)]
mod tests;

pub use errors::{Confusion, Look, Measured, TideTable};
pub use evaluator::{Evaluator, MaskMetrics};
pub use metrics::{COCO_KEYS, ClassMetrics, Metrics, Overlap, SEGM_KEYS, per_class_json};
pub use results::{ResultBox, RleMask, read_results, write_results};
