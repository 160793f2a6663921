//! COCO detection metrics, computed by `hotcoco` (bit-identical to pycocotools), and detections in COCO's results format.
//!
//! Main types: [`Evaluator`], [`Metrics`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use hotcoco::params::IouType;
use hotcoco::{COCO, COCOeval};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One detection in COCO's results format.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultBox {
    /// Image id of the annotation file.
    pub image_id: u64,
    /// Category id of the annotation file.
    pub category_id: u64,
    /// x, y, width, height in pixels of the original image.
    pub bbox: [f64; 4],
    /// 0 to 1.
    pub score: f64,
}

/// Keys of the twelve COCO numbers, in pycocotools' order.
pub const COCO_KEYS: [&str; 12] = [
    "bbox_ap",
    "bbox_ap50",
    "bbox_ap75",
    "bbox_ap_small",
    "bbox_ap_medium",
    "bbox_ap_large",
    "bbox_ar1",
    "bbox_ar10",
    "bbox_ar100",
    "bbox_ar_small",
    "bbox_ar_medium",
    "bbox_ar_large",
];

/// The metrics of one evaluation; -1 where there is no ground truth of that kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// In the order of [`COCO_KEYS`].
    pub numbers: [f64; 12],
    /// AP and AP50 of each class, by name.
    pub per_class: BTreeMap<String, (f64, f64)>,
    lines: Vec<String>,
}

impl Metrics {
    /// AP over IoU 0.50 to 0.95.
    pub fn ap(&self) -> f64 {
        self.numbers[0]
    }

    /// AP at IoU 0.50.
    pub fn ap50(&self) -> f64 {
        self.numbers[1]
    }

    /// The twelve numbers by key.
    pub fn by_key(&self) -> BTreeMap<String, f64> {
        COCO_KEYS.iter().map(|k| k.to_string()).zip(self.numbers).collect()
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        let width = self.per_class.keys().map(|k| k.chars().count()).max().unwrap_or(0).max(5);
        write!(f, "\n {:width$}  {:>6}  {:>6}", "class", "AP", "AP50")?;
        for (name, (ap, ap50)) in &self.per_class {
            write!(f, "\n {name:width$}  {ap:6.3}  {ap50:6.3}")?;
        }
        Ok(())
    }
}

/// Ground truth, read once.
#[derive(Clone)]
pub struct Evaluator {
    truth: Arc<COCO>,
}

impl Evaluator {
    /// From a COCO annotation file.
    pub fn new(annotations: &Path) -> Result<Evaluator> {
        let truth = COCO::new(annotations).map_err(|e| Error::data(annotations, e.to_string()))?;
        Ok(Evaluator { truth: Arc::new(truth) })
    }

    /// The metrics of all detections together.
    ///
    /// Errors: `Value` if a detection names an image or a category that the annotation file does not have.
    pub fn evaluate(&self, detections: &[ResultBox]) -> Result<Metrics> {
        let wrong = |e: hotcoco::error::Error| Error::value("evaluate", e.to_string());
        for d in detections {
            if self.truth.get_img(d.image_id).is_none() {
                return Err(Error::value("evaluate", format!("image_id {} is not in the annotation file", d.image_id)));
            }
            if self.truth.get_cat(d.category_id).is_none() {
                let id = d.category_id;
                return Err(Error::value("evaluate", format!("category_id {id} is not in the annotation file")));
            }
        }
        let found = if detections.is_empty() {
            COCO::from_dataset(hotcoco::Dataset {
                images: self.truth.dataset.images.clone(),
                categories: self.truth.dataset.categories.clone(),
                ..Default::default()
            })
        } else {
            let rows: Vec<f64> = detections
                .iter()
                .flat_map(|d| {
                    let [x, y, w, h] = d.bbox;
                    [d.image_id as f64, x, y, w, h, d.score, d.category_id as f64]
                })
                .collect();
            self.truth.load_res_anns(COCO::detections_from_rows(&rows, 7).map_err(wrong)?).map_err(wrong)?
        };
        let mut eval = COCOeval::new(self.truth.clone(), found, IouType::Bbox);
        eval.evaluate().map_err(wrong)?;
        eval.accumulate();
        let lines = eval.summarize_lines();
        let numbers = eval.stats().and_then(|s| s.try_into().ok()).unwrap_or([-1.0; 12]);
        Ok(Metrics { numbers, per_class: self.per_class(&eval), lines })
    }

    fn per_class(&self, eval: &COCOeval) -> BTreeMap<String, (f64, f64)> {
        let Some(acc) = eval.accumulated() else { return BTreeMap::new() };
        let s = acc.shape;
        let mean = |k: usize, thresholds: std::ops::Range<usize>| {
            let values: Vec<f64> = thresholds
                .flat_map(|t| (0..s.r).map(move |r| (t, r)))
                .map(|(t, r)| acc.precision[acc.precision_idx(t, r, k, 0, s.m - 1)])
                .filter(|&p| p > -1.0)
                .collect();
            if values.is_empty() { -1.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
        };
        let names = acc.cat_ids.iter().enumerate();
        names.map(|(k, &id)| (self.truth.cat_name(id), (mean(k, 0..s.t), mean(k, 0..1)))).collect()
    }
}

/// Writes detections as a COCO results file.
pub fn write_results(path: &Path, detections: &[ResultBox]) -> Result<()> {
    let text = serde_json::to_string(detections).expect("eval: plain numbers are JSON");
    std::fs::write(path, text).map_err(|e| Error::io(path, e))
}

/// Reads a COCO results file.
pub fn read_results(path: &Path) -> Result<Vec<ResultBox>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::data(path, format!("not a COCO results file: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/coco_eval").join(name)
    }

    fn check(truth: &str, found: &str, key: &str) -> Metrics {
        let want: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(fixture("expected_stats.json")).unwrap()).unwrap();
        let metrics =
            Evaluator::new(&fixture(truth)).unwrap().evaluate(&read_results(&fixture(found)).unwrap()).unwrap();
        for (i, got) in metrics.numbers.iter().enumerate() {
            let want = want[key][i].as_f64().unwrap();
            assert!((got - want).abs() < 1e-9, "{key} {}: {got} {want}", COCO_KEYS[i]);
        }
        metrics
    }

    #[test]
    fn numbers_are_those_of_pycocotools() {
        let m = check("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json", "bbox");
        let with_truth: Vec<f64> = m.per_class.values().map(|v| v.0).filter(|&v| v >= 0.0).collect();
        let mean = with_truth.iter().sum::<f64>() / with_truth.len() as f64;
        assert!((mean - m.ap()).abs() < 1e-9, "AP is the mean over classes: {mean}");
        assert!(m.to_string().contains("person"));
    }

    #[test]
    fn crowds_are_ignored_as_pycocotools_does() {
        check("crowd1_gt.json", "crowd1_dt.json", "crowd1_bbox");
    }

    #[test]
    fn nothing_found_is_zero() {
        let m = Evaluator::new(&fixture("crowd1_gt.json")).unwrap().evaluate(&[]).unwrap();
        assert_eq!(m.ap(), 0.0);
    }

    #[test]
    fn unknown_ids_are_named() {
        let d = ResultBox { image_id: 987_654, category_id: 1, bbox: [0.0, 0.0, 1.0, 1.0], score: 0.5 };
        let e = Evaluator::new(&fixture("crowd1_gt.json")).unwrap().evaluate(&[d]).unwrap_err();
        assert!(e.to_string().contains("987654"), "{e}");
    }

    #[test]
    fn results_survive_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let d = vec![ResultBox { image_id: 3, category_id: 2, bbox: [0.5, 1.0, 2.0, 3.25], score: 0.75 }];
        write_results(&dir.path().join("r.json"), &d).unwrap();
        assert_eq!(read_results(&dir.path().join("r.json")).unwrap(), d);
        assert!(read_results(&dir.path().join("none.json")).is_err());
    }
}
