//! COCO detection metrics, computed by `hotcoco` (bit-identical to pycocotools), and detections in COCO's results format.
//!
//! Main types: [`Evaluator`], [`Metrics`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use hotcoco::params::IouType;
use hotcoco::{COCO, COCOeval};
use serde::{Deserialize, Serialize};

use crate::data::Dataset;
use crate::error::{Error, Result};

/// One detection in COCO's results format.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultBox {
    /// Image id of the annotation file.
    pub image_id: i64,
    /// Category id of the annotation file.
    pub category_id: i64,
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

/// Ground truth of a data set.
///
/// hotcoco gets what [`Dataset`] has read, under numbers of its own, and never sees the file: it is stricter than training
/// may be about fields that no metric needs, and a run must not end at its first evaluation.
#[derive(Clone)]
pub struct Evaluator {
    truth: Arc<COCO>,
    images: HashMap<i64, u64>,
    categories: HashMap<i64, u64>,
}

impl Evaluator {
    /// Takes all images and annotations, those that training leaves out too. Numbers follow the ids, as pycocotools orders
    /// images and classes.
    pub fn new(dataset: &Dataset) -> Evaluator {
        let mut order: Vec<usize> = (0..dataset.images.len()).collect();
        order.sort_by_key(|&i| dataset.images[i].id);
        let mut truth = hotcoco::Dataset::default();
        for (class, category) in dataset.categories.iter().enumerate() {
            let id = class as u64 + 1;
            truth.categories.push(hotcoco::Category { id, name: category.name.clone(), ..Default::default() });
        }
        for (image_id, &index) in (1..).zip(&order) {
            let image = &dataset.images[index];
            let (height, width) = (image.height, image.width);
            truth.images.push(hotcoco::Image { id: image_id, height, width, ..Default::default() });
            for a in &dataset.annotations[index] {
                truth.annotations.push(hotcoco::Annotation {
                    id: truth.annotations.len() as u64 + 1,
                    image_id,
                    category_id: u64::from(a.class) + 1,
                    bbox: Some(a.bbox),
                    area: Some(a.area),
                    iscrowd: a.iscrowd,
                    ..Default::default()
                });
            }
        }
        Evaluator {
            truth: Arc::new(COCO::from_dataset(truth)),
            images: (1..).zip(&order).map(|(id, &i)| (dataset.images[i].id, id)).collect(),
            categories: (1..).zip(&dataset.categories).map(|(id, c)| (c.id, id)).collect(),
        }
    }

    /// The metrics of all detections together.
    ///
    /// Errors: `Value` if a detection names an image or a category that the annotation file does not have.
    pub fn evaluate(&self, detections: &[ResultBox]) -> Result<Metrics> {
        let wrong = |e: hotcoco::error::Error| Error::value("evaluate", e.to_string());
        let unknown =
            |what: &str, id: i64| Error::value("evaluate", format!("{what} {id} is not in the annotation file"));
        let mut rows: Vec<f64> = Vec::with_capacity(7 * detections.len());
        for d in detections {
            let image = *self.images.get(&d.image_id).ok_or_else(|| unknown("image_id", d.image_id))?;
            let category = self.categories.get(&d.category_id);
            let category = *category.ok_or_else(|| unknown("category_id", d.category_id))?;
            let [x, y, w, h] = d.bbox;
            rows.extend([image as f64, x, y, w, h, d.score, category as f64]);
        }
        let found = if detections.is_empty() {
            COCO::from_dataset(hotcoco::Dataset {
                images: self.truth.dataset.images.clone(),
                categories: self.truth.dataset.categories.clone(),
                ..Default::default()
            })
        } else {
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

    fn evaluator(truth: &str) -> Evaluator {
        Evaluator::new(&Dataset::load(fixture(truth), "").unwrap())
    }

    fn check(truth: &str, found: &str, key: &str) -> Metrics {
        let want: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(fixture("expected_stats.json")).unwrap()).unwrap();
        let metrics = evaluator(truth).evaluate(&read_results(&fixture(found)).unwrap()).unwrap();
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
        let m = evaluator("crowd1_gt.json").evaluate(&[]).unwrap();
        assert_eq!(m.ap(), 0.0);
    }

    #[test]
    fn unknown_ids_are_named() {
        let d = ResultBox { image_id: 987_654, category_id: 1, bbox: [0.0, 0.0, 1.0, 1.0], score: 0.5 };
        let e = evaluator("crowd1_gt.json").evaluate(&[d]).unwrap_err();
        assert!(e.to_string().contains("987654"), "{e}");
    }

    /// What CVAT and Roboflow write, ids that no 64-bit float holds, images out of order, no area.
    #[test]
    fn files_of_other_programs_are_evaluated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let text = r#"{"info": {"year": "2023", "version": 1, "date_created": 5},
            "licenses": [{"id": "x", "name": 3}],
            "images": [{"id": 9007199254740993, "file_name": "b.png", "width": 99, "height": 99, "date_captured": 0},
                       {"id": 9007199254740992, "file_name": "a.png", "width": 99, "height": 99, "license": ""}],
            "categories": [{"id": 1, "name": "x", "supercategory": null}],
            "annotations": [{"id": 1, "image_id": 9007199254740993, "category_id": 1, "bbox": [0, 0, 50, 50], "iscrowd": null},
                            {"id": "2", "image_id": 9007199254740993, "category_id": 1, "bbox": [1, 2, 3]},
                            {"id": 3, "image_id": 9007199254740992, "category_id": 1, "bbox": [0, 0, null, 50]}]}"#;
        std::fs::write(&path, text).unwrap();
        let evaluator = Evaluator::new(&Dataset::load(&path, "").unwrap());
        let found = |image_id| ResultBox { image_id, category_id: 1, bbox: [0.0, 0.0, 50.0, 50.0], score: 0.5 };
        let m = evaluator.evaluate(&[found(9_007_199_254_740_993)]).unwrap();
        let sizes = ["bbox_ap", "bbox_ap_medium", "bbox_ap_small"].map(|key| m.by_key()[key].round());
        assert_eq!(sizes, [1.0, 1.0, -1.0], "the area is that of the box");
        assert_eq!(evaluator.evaluate(&[found(9_007_199_254_740_992)]).unwrap().ap(), 0.0);
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
