//! The evaluator beside pycocotools, on its fixtures and on small files written here.

use std::path::Path;

use serde_json::{Value, json};

use super::errors::{Look, Measured};
use super::evaluator::Evaluator;
use super::metrics::{ClassMetrics, Metrics, Overlap};
use super::results::{ResultBox, RleMask, read_results};
use crate::data::{Dataset, Masks, ReadOptions};
use crate::error::Result;

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

/// The mask of a square from (`at`, `at`) on, in an image of `size` (width, height).
fn square((w, h): (u32, u32), at: u32, side: u32) -> RleMask {
    let inside = |v: u32| (at..at + side).contains(&v);
    let columns: Vec<u8> = (0..w * h).map(|i| u8::from(inside(i / h) && inside(i % h))).collect();
    RleMask::from_counts((w, h), hotcoco::mask::encode(&columns, h, w).unwrap().counts)
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
    let moved: Vec<ResultBox> = found.iter().map(|d| ResultBox { bbox: [0.0, 0.0, 1.0, 1.0], ..d.clone() }).collect();
    assert_eq!(evaluator.evaluate_masks(&moved).unwrap(), m);
    assert_eq!(evaluator.evaluate_masks(&[]).unwrap().ap(), 0.0);

    let refused = |d: ResultBox| evaluator.evaluate_masks(&[d]).unwrap_err().to_string();
    let without = refused(ResultBox { segmentation: None, ..found[0].clone() });
    assert!(without.contains("detection of image 42: no segmentation"), "{without}");
    let small = square((3, 2), 0, 1);
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
        segmentation: Some(square((99, 99), x, 40)),
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
    let mask = square((99, 99), 0, 20);
    let found = ResultBox { image_id: 1, category_id: 1, bbox: [0.0; 4], score: 0.5, segmentation: Some(mask) };
    let m = mask_evaluator(&path).unwrap().evaluate_masks(&[found]).unwrap().by_key();
    assert_eq!([m["segm_ap_small"].round(), m["segm_ap_medium"].round()], [1.0, -1.0]);
}

/// A box of negative width: missed if the file has its area, ignored if not. [`Dataset::evaluation_note`] says the
/// same.
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
    let d = ResultBox { image_id: 987_654, category_id: 1, bbox: [0.0, 0.0, 1.0, 1.0], score: 0.5, segmentation: None };
    let e = evaluator("crowd1_gt.json").evaluate(&[d]).unwrap_err();
    assert!(e.to_string().contains("987654"), "{e}");
}

/// Files as CVAT and Roboflow write them: ids that no 64-bit float holds, images out of order, no area.
#[test]
fn files_of_other_programs_are_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let text = r#"{"info": {"year": "2023", "version": 1, "date_created": 5},
        "licenses": [{"id": "x", "name": 3}],
        "images": [{"id": 9007199254740993, "file_name": "b.png", "width": 99, "height": 99, "date_captured": 0},
                   {"id": 9007199254740992, "file_name": "a.png", "width": 99, "height": 99, "license": ""}],
        "categories": [{"id": 1, "name": "x", "supercategory": null}],
        "annotations": [{"id": 1, "image_id": 9007199254740993, "category_id": 1, "bbox": [0, 0, 50, 50],
          "iscrowd": null},
                        {"id": "2", "image_id": 9007199254740993, "category_id": 1, "bbox": [1, 2, 3]},
                        {"id": 3, "image_id": 9007199254740992, "category_id": 1, "bbox": [0, 0, null, 50]}]}"#;
    std::fs::write(&path, text).unwrap();
    let evaluator = Evaluator::new(&Dataset::load(&path, "").unwrap());
    let found =
        |image_id| ResultBox { image_id, category_id: 1, bbox: [0.0, 0.0, 50.0, 50.0], score: 0.5, segmentation: None };
    let m = evaluator.evaluate(&[found(9_007_199_254_740_993)]).unwrap();
    let sizes = ["bbox_ap", "bbox_ap_medium", "bbox_ap_small"].map(|key| m.by_key()[key].round());
    assert_eq!(sizes, [1.0, 1.0, -1.0], "the area is that of the box");
    assert_eq!(evaluator.evaluate(&[found(9_007_199_254_740_992)]).unwrap().ap(), 0.0);
}

fn measured(look: Look) -> Measured {
    let file = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/coco_eval").join(name);
    let evaluator = Evaluator::new(&Dataset::load(file("crowd1_gt.json"), "").unwrap());
    evaluator.measure(&read_results(&file("crowd1_dt.json")).unwrap(), Overlap::Boxes, look).unwrap()
}

#[test]
fn looking_changes_no_metric() {
    let (plain, all) = (measured(Look::default()), measured(Look { tide: true, confusion: Some(0.0) }));
    assert_eq!(plain.metrics, all.metrics);
    assert!(plain.tide.is_none() && plain.confusion.is_none());
    let tide = all.tide.unwrap();
    assert!((tide.ap50 - all.metrics.ap50()).abs() < 1e-6, "{} {}", tide.ap50, all.metrics.ap50());
    assert_eq!(tide.kinds.len(), 8);
    assert!(tide.json()["missed"]["count"].is_u64() && tide.json()["false_negatives"]["ap"].is_f64());
    assert!(all.confusion.unwrap().counts.iter().flatten().sum::<u64>() > 0);
}

/// Detections with one error of each kind.
#[test]
fn errors_have_their_kind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let object = |id: i64, x: i64| {
        let bbox = [x, 0, 10, 10];
        json!({ "id": id, "image_id": 1, "category_id": 1, "bbox": bbox, "area": 100, "iscrowd": 0 })
    };
    let objects: Vec<Value> = [0, 20, 40, 60, 80].iter().zip(1..).map(|(&x, id)| object(id, x)).collect();
    let truth = json!({
        "images": [{ "id": 1, "file_name": "a.png", "width": 200, "height": 50 }],
        "categories": [{ "id": 1, "name": "x" }, { "id": 2, "name": "y" }], "annotations": objects,
    });
    std::fs::write(&path, truth.to_string()).unwrap();
    let evaluator = Evaluator::new(&Dataset::load(&path, "").unwrap());
    let found = |category_id, x: f64, score| ResultBox {
        image_id: 1,
        category_id,
        bbox: [x, 0.0, 10.0, 10.0],
        score,
        segmentation: None,
    };
    let rows = [
        found(2, 0.0, 0.9),   // the first object, of another class
        found(1, 20.0, 0.8),  // the second
        found(1, 20.5, 0.7),  // and again
        found(1, 45.0, 0.6),  // the third, IoU 1/3
        found(2, 65.0, 0.5),  // the fourth, IoU 1/3, of another class
        found(1, 150.0, 0.4), // nothing; the fourth and the fifth are missed
    ];
    let look = Look { tide: true, confusion: Some(0.45) };
    let measured = evaluator.measure(&rows, Overlap::Boxes, look).unwrap();
    let tide = measured.tide.unwrap();
    let counts: Vec<(&str, u64)> = tide.kinds.iter().filter_map(|(name, _, n)| Some((*name, (*n)?))).collect();
    let one = ["classification", "localisation", "both", "duplicate", "background"].map(|name| (name, 1));
    assert_eq!(counts, [&one[..], &[("missed", 2)]].concat());
    assert!(tide.kinds.iter().all(|k| k.1 >= 0.0) && tide.kinds[5].1 > 0.0, "{tide}");
    let confusion = measured.confusion.unwrap();
    assert_eq!(confusion.counts, [[1, 1, 3], [0, 0, 0], [2, 1, 0]], "{confusion}");
    assert_eq!(confusion.largest(), [(1, 0, 1)]);
}
