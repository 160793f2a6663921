//! COCO metrics of a data set's ground truth and of detections, computed by `hotcoco`. Main type: [`Evaluator`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hotcoco::params::IouType;
use hotcoco::{COCO, COCOeval};
use rayon::prelude::*;

use super::errors::{Confusion, Look, Measured, TideTable};
use super::metrics::{ClassMetrics, Metrics, Overlap, wrong};
use super::results::ResultBox;
use crate::data::Dataset;
use crate::error::{Error, Result};

/// Ground truth of a data set.
///
/// hotcoco gets what [`Dataset`] has read, under numbers of its own, and never sees the file: it is stricter than training
/// may be about fields that no metric needs, and a run must not end at its first evaluation.
#[derive(Clone)]
pub struct Evaluator {
    truth: Arc<COCO>,
    /// The same with masks.
    masks: Option<Arc<COCO>>,
    images: HashMap<i64, u64>,
    categories: HashMap<i64, u64>,
}

impl Evaluator {
    /// Takes all images and annotations, those that training leaves out too. Numbers follow the ids, as pycocotools orders
    /// images and classes.
    pub fn new(dataset: &Dataset) -> Evaluator {
        Self::of(dataset, false)
    }

    /// As [`Evaluator::new`], for masks too: the data set must have been read with them. An object without a usable mask
    /// counts as a crowd region of its box in the metrics of masks: not asked for, and nothing found there is held against.
    ///
    /// Errors: `Data` if no annotation has a mask.
    ///
    /// Cost: each polygon is rasterised once, on all cores; run lengths of all masks are kept.
    pub fn with_masks(dataset: &Dataset) -> Result<Evaluator> {
        dataset.expect_masks()?;
        Ok(Self::of(dataset, true))
    }

    fn of(dataset: &Dataset, masks: bool) -> Evaluator {
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
        let masks = masks.then(|| {
            let mut truth = truth.clone();
            let of = order.iter().flat_map(|&i| dataset.annotations[i].iter().map(move |a| (a, &dataset.images[i])));
            let of: Vec<_> = of.collect();
            truth.annotations.par_iter_mut().zip(of).for_each(|(entry, (a, image))| match &a.segmentation {
                Some(mask) => {
                    let (size, counts) = ([image.height, image.width], mask.rle((image.width, image.height)).counts);
                    if !a.has_area {
                        // What is found is sized by its mask: so is the truth.
                        entry.area = Some(counts.iter().skip(1).step_by(2).map(|&n| f64::from(n)).sum());
                    }
                    entry.segmentation = Some(hotcoco::Segmentation::UncompressedRle { size, counts });
                }
                // hotcoco makes a mask of the box.
                None => entry.iscrowd = true,
            });
            Arc::new(COCO::from_dataset(truth))
        });
        Evaluator {
            truth: Arc::new(COCO::from_dataset(truth)),
            masks,
            images: (1..).zip(&order).map(|(id, &i)| (dataset.images[i].id, id)).collect(),
            categories: (1..).zip(&dataset.categories).map(|(id, c)| (c.id, id)).collect(),
        }
    }

    /// Whether [`Evaluator::evaluate_masks`] can be called.
    pub fn has_masks(&self) -> bool {
        self.masks.is_some()
    }

    /// The metrics of the boxes of all detections together.
    ///
    /// Errors: `Value` if a detection names an image or a category that the annotation file does not have.
    pub fn evaluate(&self, detections: &[ResultBox]) -> Result<Metrics> {
        Ok(self.measure(detections, Overlap::Boxes, Look::default())?.metrics)
    }

    /// The metrics of the masks of all detections together. Sizes small, medium and large are those of the masks, whatever
    /// their boxes are.
    ///
    /// Errors: as [`Evaluator::evaluate`]; `Value` if this was made without masks, or if a detection has none, or one of
    /// another size than its image, or one that does not decode.
    pub fn evaluate_masks(&self, detections: &[ResultBox]) -> Result<Metrics> {
        Ok(self.measure(detections, Overlap::Masks, Look::default())?.metrics)
    }

    /// The metrics of boxes or masks, and of the errors what `look` asks for.
    ///
    /// Errors: as [`Evaluator::evaluate`] and [`Evaluator::evaluate_masks`].
    pub fn measure(&self, detections: &[ResultBox], overlap: Overlap, look: Look) -> Result<Measured> {
        let (truth, found) = match overlap {
            Overlap::Boxes => (&self.truth, self.boxes(detections)?),
            Overlap::Masks => self.with_found_masks(detections)?,
        };
        let kind = match overlap {
            Overlap::Boxes => IouType::Bbox,
            Overlap::Masks => IouType::Segm,
        };
        let mut eval = COCOeval::new(Arc::clone(truth), found, kind);
        eval.evaluate().map_err(wrong)?;
        eval.accumulate();
        let lines = eval.summarize_lines();
        let numbers = eval.stats().and_then(|s| s.try_into().ok()).unwrap_or([-1.0; 12]);
        let metrics = Metrics { overlap, numbers, per_class: self.per_class(&eval), lines };
        let tide = look.tide.then(|| TideTable::new(&eval, overlap)).transpose()?;
        let confusion = look.confusion.map(|score| Confusion::new(&eval, score));
        Ok(Measured { metrics, tide, confusion })
    }

    fn boxes(&self, detections: &[ResultBox]) -> Result<COCO> {
        let mut rows: Vec<f64> = Vec::with_capacity(7 * detections.len());
        for d in detections {
            let (image, category) = self.numbers(d)?;
            let [x, y, w, h] = d.bbox;
            rows.extend([image as f64, x, y, w, h, d.score, category as f64]);
        }
        if detections.is_empty() {
            return Ok(self.nothing(&self.truth));
        }
        self.truth.load_res_anns(COCO::detections_from_rows(&rows, 7).map_err(wrong)?).map_err(wrong)
    }

    /// Ground truth and detections as hotcoco measures masks.
    fn with_found_masks(&self, detections: &[ResultBox]) -> Result<(&Arc<COCO>, COCO)> {
        let truth = self.masks.as_ref().ok_or_else(|| {
            Error::value("evaluate", "no masks in the ground truth: make the evaluator with `Evaluator::with_masks`")
        })?;
        let row = |d: &ResultBox| {
            let (image_id, category_id) = self.numbers(d)?;
            let of = |what: String| Error::value("evaluate", format!("detection of image {}: {what}", d.image_id));
            let mask = d.segmentation.as_ref().ok_or_else(|| of("no segmentation: write its RLE".to_string()))?;
            let image = truth.get_img(image_id).map_or([0; 2], |i| [i.height, i.width]);
            if mask.size != image {
                return Err(of(format!("its mask has height and width {:?}, its image {image:?}", mask.size)));
            }
            mask.area_and_bbox().map_err(|e| of(e.to_string()))?;
            // Without a box: with one, hotcoco would take sizes from it, as pycocotools does.
            Ok(hotcoco::Annotation {
                image_id,
                category_id,
                score: Some(d.score),
                segmentation: Some(hotcoco::Segmentation::CompressedRle {
                    size: mask.size,
                    counts: mask.counts.clone(),
                }),
                ..Default::default()
            })
        };
        let rows = detections.par_iter().map(row).collect::<Vec<Result<_>>>(); // the first in their order that is wrong is told
        let rows = rows.into_iter().collect::<Result<Vec<_>>>()?;
        let found = if rows.is_empty() { self.nothing(truth) } else { truth.load_res_anns(rows).map_err(wrong)? };
        Ok((truth, found))
    }

    /// Image and category as hotcoco knows them.
    fn numbers(&self, d: &ResultBox) -> Result<(u64, u64)> {
        let unknown =
            |what: &str, id: i64| Error::value("evaluate", format!("{what} {id} is not in the annotation file"));
        let image = *self.images.get(&d.image_id).ok_or_else(|| unknown("image_id", d.image_id))?;
        let category = self.categories.get(&d.category_id);
        Ok((image, *category.ok_or_else(|| unknown("category_id", d.category_id))?))
    }

    fn nothing(&self, truth: &COCO) -> COCO {
        COCO::from_dataset(hotcoco::Dataset {
            images: truth.dataset.images.clone(),
            categories: truth.dataset.categories.clone(),
            ..Default::default()
        })
    }

    fn per_class(&self, eval: &COCOeval) -> BTreeMap<String, ClassMetrics> {
        let Some(acc) = eval.accumulated() else { return BTreeMap::new() };
        let s = acc.shape;
        // Areas: all, small, medium, large.
        let mean = |k: usize, area: usize, thresholds: usize| {
            let values: Vec<f64> = (0..thresholds)
                .flat_map(|t| (0..s.r).map(move |r| (t, r)))
                .map(|(t, r)| acc.precision[acc.precision_idx(t, r, k, area, s.m - 1)])
                .filter(|&p| p > -1.0)
                .collect();
            if values.is_empty() { -1.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
        };
        let of = |k| ClassMetrics {
            ap: mean(k, 0, s.t),
            ap50: mean(k, 0, 1),
            small: mean(k, 1, s.t),
            medium: mean(k, 2, s.t),
            large: mean(k, 3, s.t),
        };
        acc.cat_ids.iter().enumerate().map(|(k, &id)| (self.truth.cat_name(id), of(k))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::{Masks, ReadOptions};
    use crate::eval::results::{RleMask, read_results};

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/coco_eval").join(name)
    }

    fn evaluator(truth: &str) -> Evaluator {
        Evaluator::new(&Dataset::load(fixture(truth), "").unwrap())
    }

    fn mask_evaluator(truth: &Path) -> Result<Evaluator> {
        let options = ReadOptions { masks: Masks::Read, ..ReadOptions::default() };
        Evaluator::with_masks(&Dataset::load_with(truth, "", options).unwrap())
    }

    fn compare(metrics: &Metrics, key: &str) {
        let want: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(fixture("expected_stats.json")).unwrap()).unwrap();
        for (i, got) in metrics.numbers.iter().enumerate() {
            let want = want[key][i].as_f64().unwrap();
            assert!((got - want).abs() < 1e-9, "{key} {}: {got} {want}", metrics.overlap.keys()[i]);
        }
    }

    fn check(truth: &str, found: &str, key: &str) -> Metrics {
        let metrics = evaluator(truth).evaluate(&read_results(&fixture(found)).unwrap()).unwrap();
        compare(&metrics, key);
        metrics
    }

    #[test]
    fn numbers_are_those_of_pycocotools() {
        let m = check("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json", "bbox");
        let with_truth: Vec<f64> = m.per_class.values().map(|v| v.ap).filter(|&v| v >= 0.0).collect();
        let mean = with_truth.iter().sum::<f64>() / with_truth.len() as f64;
        assert!((mean - m.ap()).abs() < 1e-9, "AP is the mean over classes: {mean}");
        let sizes: [fn(&ClassMetrics) -> f64; 3] = [|c| c.small, |c| c.medium, |c| c.large];
        for (size, want) in sizes.iter().zip(&m.numbers[3..6]) {
            let of: Vec<f64> = m.per_class.values().map(size).filter(|&v| v >= 0.0).collect();
            assert!((of.iter().sum::<f64>() / of.len() as f64 - want).abs() < 1e-9, "so it is of each size");
        }
        assert!(m.to_string().contains("person"));
    }

    /// Polygons, and crowds as uncompressed RLE, against compressed RLE without boxes.
    #[test]
    fn numbers_of_masks_are_those_of_pycocotools() {
        let evaluator = mask_evaluator(&fixture("instances_val2014_100.json")).unwrap();
        let found = read_results(&fixture("instances_val2014_fakesegm100_results.json")).unwrap();
        let m = evaluator.evaluate_masks(&found).unwrap();
        compare(&m, "segm");
        assert_eq!((m.by_key()["segm_ap"], m.by_key().len()), (m.ap(), 12));
        assert!(m.per_class["person"].ap50 > 0.0);
        // Boxes of the same evaluator are those of one without masks; boxes of detections change nothing for masks.
        let boxes = read_results(&fixture("instances_val2014_fakebbox100_results.json")).unwrap();
        compare(&evaluator.evaluate(&boxes).unwrap(), "bbox");
        let moved: Vec<ResultBox> =
            found.iter().map(|d| ResultBox { bbox: [0.0, 0.0, 1.0, 1.0], ..d.clone() }).collect();
        assert_eq!(evaluator.evaluate_masks(&moved).unwrap(), m);
        assert_eq!(evaluator.evaluate_masks(&[]).unwrap().ap(), 0.0);

        let refused = |d: ResultBox| evaluator.evaluate_masks(&[d]).unwrap_err().to_string();
        let without = refused(ResultBox { segmentation: None, ..found[0].clone() });
        assert!(without.contains("detection of image 42: no segmentation"), "{without}");
        let small = RleMask::from_window((3, 2), [0, 0, 1, 1], |_, _| true).unwrap();
        let small = refused(ResultBox { segmentation: Some(small), ..found[0].clone() });
        assert!(small.contains("height and width [2, 3], its image [478, 640]"), "{small}");
        let bad = RleMask { size: [478, 640], counts: "!".to_string() };
        assert!(refused(ResultBox { segmentation: Some(bad), ..found[0].clone() }).contains("invalid RLE"));
        let e = self::evaluator("crowd1_gt.json").evaluate_masks(&[]).unwrap_err().to_string();
        assert!(e.contains("with_masks"), "{e}");
    }

    /// COCO's compressed letters of rasterised polygons, from pycocotools.
    #[test]
    fn masks_of_the_ground_truth_are_those_of_pycocotools() {
        let options = ReadOptions { masks: Masks::Train, ..ReadOptions::default() };
        let dataset = Dataset::load_with(fixture("instances_val2014_100.json"), "", options).unwrap();
        let text = std::fs::read_to_string(fixture("poly_to_rle_expected.json")).unwrap();
        let want: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        for w in &want {
            let of = |i: usize| dataset.annotations[i].iter().find(|a| w["id"] == a.id).map(|a| (i, a));
            let (i, a) = (0..dataset.images.len()).find_map(of).unwrap();
            let (width, height) = (dataset.images[i].width, dataset.images[i].height);
            let counts = a.segmentation.as_ref().unwrap().rle((width, height)).counts;
            let got = RleMask::from_counts((width, height), counts);
            assert_eq!(w["counts"], got.counts, "annotation {}", a.id);
            assert_eq!(got.area_and_bbox().unwrap().0, w["area"].as_u64().unwrap());
        }
        let kinds: Vec<_> = dataset.findings.groups().filter(|(k, _)| format!("{k:?}").contains("Mask")).collect();
        assert!(want.len() > 50 && kinds.is_empty(), "{kinds:?}");
    }

    /// A file of one picture and one class, and of objects of which the other keys are given.
    fn write_truth(path: &Path, objects: &[&str]) {
        let each = objects.iter().enumerate();
        let each = each.map(|(i, keys)| format!(r#"{{"id": {}, "image_id": 1, "category_id": 1, {keys}}}"#, i + 1));
        let text = format!(
            r#"{{"images": [{{"id": 1, "file_name": "b.png", "width": 99, "height": 99}}],
            "categories": [{{"id": 1, "name": "x"}}], "annotations": [{}]}}"#,
            each.collect::<Vec<_>>().join(", ")
        );
        std::fs::write(path, text).unwrap();
    }

    /// One object with a mask, one without: it is neither asked for nor held against.
    #[test]
    fn objects_without_masks_count_as_crowds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let write = |first: &str| {
            let first = format!(r#""bbox": [0, 0, 40, 40], "area": 1600{first}"#);
            write_truth(&path, &[&first, r#""bbox": [50, 50, 40, 40], "area": 1600"#]);
        };
        write(r#", "segmentation": [[0, 0, 40, 0, 40, 40, 0, 40]]"#);
        let evaluator = mask_evaluator(&path).unwrap();
        let found = |x: u32, score| ResultBox {
            image_id: 1,
            category_id: 1,
            bbox: [0.0; 4],
            score,
            segmentation: Some(RleMask::from_window((99, 99), [x, x, x + 40, x + 40], |_, _| true).unwrap()),
        };
        assert!((evaluator.evaluate_masks(&[found(0, 0.5)]).unwrap().ap() - 1.0).abs() < 1e-9);
        assert!((evaluator.evaluate_masks(&[found(50, 0.9), found(0, 0.5)]).unwrap().ap() - 1.0).abs() < 1e-9);
        write("");
        let e = mask_evaluator(&path).err().unwrap().to_string();
        assert!(e.contains("no object has a usable `segmentation`"), "{e}");
    }

    /// Truth without an area is as large as its mask, not as its box.
    #[test]
    fn sizes_without_areas_are_those_of_masks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_truth(&path, &[r#""bbox": [0, 0, 60, 60], "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]"#]);
        let mask = RleMask::from_window((99, 99), [0, 0, 20, 20], |_, _| true).unwrap();
        let found = ResultBox { image_id: 1, category_id: 1, bbox: [0.0; 4], score: 0.5, segmentation: Some(mask) };
        let m = mask_evaluator(&path).unwrap().evaluate_masks(&[found]).unwrap().by_key();
        assert_eq!([m["segm_ap_small"].round(), m["segm_ap_medium"].round()], [1.0, -1.0]);
    }

    /// What [`Dataset::evaluation_note`] says of a box of negative width: missed by its area, ignored without one.
    #[test]
    fn boxes_that_nothing_can_match() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let ap = |area: &str| {
            let second = format!(r#""bbox": [90, 50, -40, 40]{area}"#);
            write_truth(&path, &[r#""bbox": [0, 0, 40, 40], "area": 1600"#, &second]);
            let dataset = Dataset::load(&path, "").unwrap();
            let found = |x: f64, y: f64| ResultBox {
                image_id: 1,
                category_id: 1,
                bbox: [x, y, 40.0, 40.0],
                score: 0.5,
                segmentation: None,
            };
            let ap = Evaluator::new(&dataset).evaluate(&[found(0.0, 0.0), found(50.0, 50.0)]).unwrap().ap();
            (ap, dataset.evaluation_note().unwrap())
        };
        let (half, note) = ap(r#", "area": 1600"#);
        assert!(
            (half - 51.0 / 101.0).abs() < 1e-9 && note.contains("1 of 2 annotations counts as missed"),
            "{half}: {note}"
        );
        let (all, note) = ap("");
        assert!((all - 1.0).abs() < 1e-9 && note.contains("1 of 2 annotations is not measured"), "{all}: {note}");
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
        let d =
            ResultBox { image_id: 987_654, category_id: 1, bbox: [0.0, 0.0, 1.0, 1.0], score: 0.5, segmentation: None };
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
        let found = |image_id| ResultBox {
            image_id,
            category_id: 1,
            bbox: [0.0, 0.0, 50.0, 50.0],
            score: 0.5,
            segmentation: None,
        };
        let m = evaluator.evaluate(&[found(9_007_199_254_740_993)]).unwrap();
        let sizes = ["bbox_ap", "bbox_ap_medium", "bbox_ap_small"].map(|key| m.by_key()[key].round());
        assert_eq!(sizes, [1.0, 1.0, -1.0], "the area is that of the box");
        assert_eq!(evaluator.evaluate(&[found(9_007_199_254_740_992)]).unwrap().ap(), 0.0);
    }
}
