//! TIDE and the confusion of classes, through an evaluation.

use std::path::Path;

use serde_json::{Value, json};

use super::errors::*;
use super::evaluator::Evaluator;
use super::metrics::Overlap;
use super::results::{ResultBox, read_results};
use crate::data::Dataset;

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

/// One error of each kind.
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

fn made(k: usize) -> Confusion {
    let mut counts = vec![vec![0; k + 1]; k + 1];
    for (i, row) in counts.iter_mut().enumerate().take(k) {
        row[i] = 100;
        row[(i + 1) % k] = i as u64;
        row[k] = 2;
    }
    counts[k][0] = 7;
    Confusion { score: 0.3, classes: (0..k).map(|i| format!("class{i}")).collect(), counts }
}

#[test]
fn few_classes_are_a_table_and_many_a_list() {
    let few = made(4).to_string();
    assert_eq!(few.lines().count(), 1 + 1 + 5, "{few}");
    assert!(few.contains("missed") && few.contains("nothing there"));
    let many = made(80).to_string();
    assert!(many.lines().count() <= 4 + LISTED && many.lines().all(|l| l.chars().count() <= TABLE_WIDTH), "{many}");
    assert!(many.contains("class79") && many.contains("160 missed; 7 found") && many.contains("59 more"), "{many}");
    assert_eq!(made(80).largest()[0], (79, 79, 0));
}
