//! Annotation files, good and bad: what is read, what is dropped and counted, and what is refused with which message.

use crate::support::annotations::{good, write};
use serde_json::{Value, json};
use tempfile::TempDir;
use upres::data::{Dataset, FindingKind, Masks, ReadOptions, Severity, TrainFilter};

fn read(file: &Value) -> Dataset {
    let dir = TempDir::new().unwrap();
    let path = write(&dir, file.to_string());
    Dataset::read(path, dir.path(), ReadOptions::default()).unwrap()
}

/// The error of loading `text`, which must be one line that begins with the file's name.
fn refused(text: impl AsRef<[u8]>) -> String {
    let dir = TempDir::new().unwrap();
    let path = write(&dir, text);
    let e = Dataset::load(&path, dir.path()).expect_err("must be refused").to_string();
    let rest = e.strip_prefix(&format!("{}: ", path.display())).unwrap_or_else(|| panic!("no file name: {e}"));
    assert!(!rest.contains('\n'), "{e}");
    rest.to_string()
}

/// Reads the good file with one annotation added, which must be a finding of `kind` whose message names it.
fn dropped(annotation: Value, kind: FindingKind) -> String {
    let mut file = good();
    file["annotations"].as_array_mut().unwrap().push(annotation);
    let d = read(&file);
    let used: usize = (0..d.images.len()).map(|i| d.ground_truth(i).count()).sum();
    assert_eq!(used, 3, "{kind:?} must not be used: {}", d.findings);
    assert_eq!(d.findings.count(kind), 1, "{kind:?}: {}", d.findings);
    assert_eq!(d.findings.groups().filter(|(_, g)| g.count > 0).count(), 1, "nothing else: {}", d.findings);
    assert!(d.findings.fatal().is_none());
    d.findings.groups().find(|(k, _)| *k == kind).unwrap().1.examples[0].clone()
}

#[test]
fn a_good_file() {
    let d = read(&good());
    assert_eq!(d.findings.groups().count(), 0, "no `info` is no finding: {}", d.findings);
    assert_eq!(d.class_names(), ["dog", "cat"], "classes are in order of id");
    assert_eq!(d.images[1].file_name, "b.png");
    let first = &d.annotations[0];
    assert_eq!((first[0].class, first[0].xyxy, first[0].bbox), (0, [10.0, 20.0, 40.0, 60.0], [10.0, 20.0, 30.0, 40.0]));
    assert_eq!((first[1].class, first[1].xyxy), (1, [0.5, 0.0, 20.5, 20.0]));
    assert_eq!((d.max_gt(), d.training_images(TrainFilter::default()).unwrap()), (8, vec![0, 1]));
    assert!(d.summary().to_string().contains("2 images, 2 classes, 3 boxes to train on"));
}

#[test]
fn max_gt_is_a_multiple_of_eight_that_holds_the_fullest_image() {
    for (n, want) in [(1, 8), (8, 8), (9, 16), (17, 24)] {
        let mut file = good();
        let list: Vec<Value> = (0..n)
            .map(|i| json!({"id": i, "image_id": 1, "category_id": 3, "bbox": [i, 1, 10, 10], "area": 100}))
            .collect();
        file["annotations"] = list.into();
        assert_eq!(read(&file).max_gt(), want);
    }
}

#[test]
fn segmentation_is_kept_on_request() {
    let mut file = good();
    file["annotations"][0]["segmentation"] = json!([[1, 2, 3.5, 4, 5, 6]]);
    assert!(read(&file).annotations[0][0].segmentation.is_none());
    let dir = TempDir::new().unwrap();
    let path = write(&dir, file.to_string());
    let options = ReadOptions { masks: Masks::Read, ..ReadOptions::default() };
    let d = Dataset::load_with(path, dir.path(), options).unwrap();
    let mask = d.annotations[0][0].segmentation.as_ref().unwrap();
    assert_eq!(mask.polygons().unwrap(), [[1.0, 2.0, 3.6, 4.0, 5.0, 6.0]], "to a fifth of a pixel");
    assert!(d.annotations[0][1].segmentation.is_none());
}

#[test]
fn files_that_are_no_annotation_files() {
    let missing = Dataset::load("/nowhere/a.json", "/nowhere").unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere/a.json: annotation file not found"), "{missing}");
    let folder = TempDir::new().unwrap();
    let e = Dataset::load(folder.path(), folder.path()).unwrap_err().to_string();
    assert!(e.contains("annotation file cannot be read"), "{e}");

    assert!(refused("").contains("empty"));
    assert!(refused("  \n ").contains("empty"));
    assert!(refused("[]").contains("JSON list"));
    assert!(refused("3").contains("line 1 column 1"));
    let text = serde_json::to_string_pretty(&good()).unwrap();
    let e = refused(&text[..text.len() / 2]);
    assert!(e.starts_with("line ") && e.contains("EOF") && e.contains("truncated: copy or write it again"), "{e}");
    let e = refused(text.replacen("\"width\": 100", "\"width\" 100", 1));
    assert!(e.starts_with("line ") && e.contains("expected `:`") && e.contains("correct the JSON there"), "{e}");
    assert!(
        refused([b"{\"images\": [{\"id\": 1, \"file_name\": \"".as_slice(), &[0xff, 0xfe], b"\"}]}"].concat())
            .contains("line 1")
    );
    assert!(refused("{\"images\": 5}").contains("invalid type: integer `5`, expected a sequence"));
}

#[test]
fn every_prefix_and_every_flipped_byte_is_an_answer_and_never_a_panic() {
    let text = good().to_string().into_bytes();
    let dir = TempDir::new().unwrap();
    for n in 0..text.len() {
        assert!(Dataset::load(write(&dir, &text[..n]), dir.path()).is_err());
        let mut bad = text.clone();
        bad[n] ^= 1 << (n % 7);
        let _ = Dataset::load(write(&dir, &bad), dir.path());
    }
}

#[test]
fn missing_lists_are_named() {
    for key in ["images", "categories", "annotations"] {
        let mut file = good();
        file.as_object_mut().unwrap().remove(key);
        assert!(refused(file.to_string()).starts_with(&format!("no key `{key}`")));
        file[key] = json!(null);
        assert!(refused(file.to_string()).starts_with(&format!("no key `{key}`")));
    }
    for (key, words) in [("images", "no usable image"), ("categories", "no usable category")] {
        let mut file = good();
        file[key] = json!([]);
        assert!(refused(file.to_string()).contains(words));
    }
    let mut file = good();
    file["annotations"] = json!([]);
    let e = read(&file).training_images(TrainFilter::default()).unwrap_err().to_string();
    assert!(e.contains("no image to train on: of 2, 0 have a side below 32 pixels and 2 have no ground truth"), "{e}");
}

#[test]
fn ids_that_name_two_things_are_refused() {
    let mut file = good();
    file["images"][1]["id"] = json!(1);
    assert!(refused(file.to_string()).contains("image id used twice (image 1: a.png and b.png)"));
    let mut file = good();
    file["categories"][1]["id"] = json!(7);
    assert!(refused(file.to_string()).contains("category id used for two names (category 7: \"cat\" and \"dog\")"));
}

#[test]
fn bad_boxes_are_dropped_one_by_one() {
    use FindingKind::*;
    let with = |bbox: Value| json!({"id": 99, "image_id": 2, "category_id": 3, "bbox": bbox, "area": 50});
    for (bbox, kind) in [
        (json!([10, 10, 0, 20]), EmptyBox),
        (json!([10, 10, 20, 0.0]), EmptyBox),
        (json!([10, 10, -5, 20]), NegativeBox),
        (json!([90, 70, 20, -1]), NegativeBox),
        (json!([100, 10, 20, 20]), OutsideBox),
        (json!([-30, 10, 30, 20]), OutsideBox),
        (json!([10, 500, 20, 20]), OutsideBox),
        (json!([10, 10, 0.5, 20]), SmallBox),
        (json!([99.5, 10, 20, 20]), SmallBox),
        (json!([5, 5, 1e-20, 1e-20]), SmallBox),
        (json!([10, 10, 20]), BadBox),
        (json!([10, 10, 20, 20, 1]), BadBox),
        (json!("10 10 20 20"), BadBox),
        (json!(null), BadBox),
        (json!([10, 10, null, 20]), NonFiniteBox),
        (json!([10, 10, 1e300, 20]), NonFiniteBox),
        (json!([10, 10, 1e30, 20]), NonFiniteBox),
    ] {
        let words = dropped(with(bbox.clone()), kind);
        assert!(words.starts_with("annotation 99, image 2 (b.png)"), "{bbox}: {words}");
    }
    let mut none = with(json!([1, 2, 3, 4]));
    none.as_object_mut().unwrap().remove("bbox");
    assert!(dropped(none, BadBox).contains("no bbox"));
    for area in [json!(0), json!(-3), json!("NaN")] {
        let mut a = with(json!([10, 10, 20, 20]));
        a["area"] = area;
        dropped(a, BadArea);
    }
}

#[test]
fn python_s_nan_is_understood() {
    let dir = TempDir::new().unwrap();
    for token in ["NaN", "Infinity", "-Infinity"] {
        let text = good().to_string().replacen("[10,20,30,40]", &format!("[10,{token},30,40]"), 1);
        let d = Dataset::load(write(&dir, text), dir.path()).unwrap();
        assert_eq!(d.findings.count(FindingKind::NonFiniteBox), 1);
        assert!(d.findings.to_string().contains("annotation 11, image 1 (a.png)"));
    }
}

#[test]
fn unknown_ids_flags_and_crowds() {
    use FindingKind::*;
    let base = json!({"id": 99, "image_id": 2, "category_id": 3, "bbox": [5, 5, 20, 20], "area": 400});
    let with = |key: &str, value: Value| {
        let mut a = base.clone();
        a[key] = value;
        a
    };
    assert_eq!(dropped(with("image_id", json!(5)), UnknownImageId), "annotation 99: image_id 5");
    assert!(dropped(with("category_id", json!(5)), UnknownCategoryId).contains("image 2 (b.png): category_id 5"));
    dropped(with("image_id", json!(null)), BadAnnotationEntry);
    dropped(with("category_id", json!("cat")), BadAnnotationEntry);
    for crowd in [json!(1), json!(true), json!(1.0)] {
        dropped(with("iscrowd", crowd), Crowd);
    }
    dropped(with("ignore", json!(1)), IgnoreFlag);
}

#[test]
fn repeated_annotations_and_ids() {
    let mut file = good();
    let again = file["annotations"][0].clone();
    file["annotations"].as_array_mut().unwrap().push(again);
    let d = read(&file);
    assert_eq!(d.findings.count(FindingKind::RepeatedAnnotation), 1);
    assert_eq!(d.ground_truth(0).count(), 2, "used once");

    file["annotations"][3]["bbox"] = json!([1, 1, 9, 9]);
    let d = read(&file);
    assert_eq!(d.findings.count(FindingKind::DuplicateAnnotationId), 1);
    assert_eq!(d.ground_truth(0).count(), 3, "both used");

    file["annotations"][3] = file["annotations"][0].clone();
    file["annotations"][3]["id"] = json!(77);
    let d = read(&file);
    assert_eq!(d.findings.count(FindingKind::DuplicateBox), 1);
    assert!(d.findings.to_string().contains("annotations 11 and 77, image 1 (a.png)"));
}

#[test]
fn boxes_that_leave_the_image_are_clipped() {
    let mut file = good();
    file["annotations"][0]["bbox"] = json!([-10, -5, 200, 30]);
    let d = read(&file);
    assert_eq!(d.annotations[0][0].xyxy, [0.0, 0.0, 100.0, 25.0]);
    assert_eq!(d.annotations[0][0].bbox, [-10.0, -5.0, 200.0, 30.0], "evaluation sees the file's numbers");
    assert_eq!(d.findings.count(FindingKind::PartlyOutside), 1);
    file["annotations"][0]["bbox"] = json!([-0.5, 0, 100.9, 30]);
    assert_eq!(read(&file).findings.groups().count(), 0, "less than a pixel is not worth a word");
}

#[test]
fn images_without_ground_truth_small_and_crowd_only() {
    let mut file = good();
    file["annotations"].as_array_mut().unwrap().pop();
    let d = read(&file);
    assert_eq!(d.findings.count(FindingKind::NoGroundTruth), 1);
    assert_eq!(d.training_images(TrainFilter::default()).unwrap(), [0]);
    let all = TrainFilter { empty_gt: false, ..TrainFilter::default() };
    assert_eq!(d.training_images(all).unwrap(), [0, 1]);

    let mut file = good();
    file["annotations"][2]["iscrowd"] = json!(1);
    let d = read(&file);
    assert_eq!((d.findings.count(FindingKind::CrowdOnly), d.findings.count(FindingKind::NoGroundTruth)), (1, 0));
    assert_eq!(d.training_images(TrainFilter::default()).unwrap(), [0]);

    let mut file = good();
    file["images"][0]["width"] = json!(31);
    let d = read(&file);
    assert_eq!(d.findings.count(FindingKind::SmallImage), 1);
    assert_eq!(d.training_images(TrainFilter::default()).unwrap(), [1]);
}

#[test]
fn bad_entries_of_images_and_categories() {
    use FindingKind::*;
    for (key, value) in [("id", json!("x")), ("id", json!(1.5)), ("file_name", json!(null)), ("file_name", json!(""))] {
        let mut file = good();
        file["images"][1][key] = value;
        let d = read(&file);
        assert_eq!((d.images.len(), d.findings.count(BadImageEntry)), (1, 1));
        let text = d.findings.to_string();
        assert!(text.contains("images[1]: id") && text.contains("want a whole number as `id`, and a"), "{text}");
    }
    let mut file = good();
    file["images"][1].as_object_mut().unwrap().remove("width");
    let d = read(&file);
    let text = d.findings.to_string();
    assert!(text.contains("image 2 (b.png): width none, height 80, and the file does not tell"), "{text}");
    assert_eq!((d.findings.count(UnknownImageId), d.findings.count(UnknownSize)), (0, 1), "its annotations go with it");

    let mut file = good();
    file["images"][1]["file_name"] = json!("a.png");
    assert_eq!(read(&file).findings.count(DuplicateFileName), 1);
    let mut file = good();
    file["categories"][1]["name"] = json!("cat");
    assert_eq!(read(&file).findings.count(DuplicateCategoryName), 1);
    let mut file = good();
    file["categories"].as_array_mut().unwrap().push(json!({"name": "no id"}));
    let d = read(&file);
    assert_eq!((d.categories.len(), d.findings.count(BadCategoryEntry)), (2, 1));
    let ids = json!([{"id": "1", "file_name": "a.png", "width": "100", "height": 80.0}, good()["images"][1]]);
    let mut file = good();
    file["images"] = ids;
    let d = read(&file);
    assert_eq!((d.images[0].id, d.images[0].width, d.findings.groups().count()), (1, 100, 0), "{}", d.findings);
}

#[test]
fn sizes_come_from_the_file_where_the_json_has_none() {
    let dir = TempDir::new().unwrap();
    for name in ["a.png", "b.png"] {
        image::save_buffer(dir.path().join(name), &[0; 60 * 44 * 3], 60, 44, image::ColorType::Rgb8).unwrap();
    }
    let mut file = good();
    for i in 0..2 {
        file["images"][i].as_object_mut().unwrap().remove("width");
    }
    let d = Dataset::load(write(&dir, file.to_string()), dir.path()).unwrap();
    assert_eq!((d.images[0].width, d.images[0].height), (60, 44));
    assert_eq!(d.findings.count(FindingKind::MissingSize), 2);
    assert_eq!(FindingKind::MissingSize.severity(), Severity::Warning);
    for wrong in [json!(0), json!(-5), json!(4_000_000_000u64), json!(2.5), json!("wide")] {
        file["images"][0]["width"] = wrong.clone();
        let d = Dataset::load(write(&dir, file.to_string()), dir.path()).unwrap();
        assert_eq!((d.images[0].width, d.findings.count(FindingKind::BadSize)), (60, 1), "{}", d.findings);
        let words = format!("image 1 (a.png): width {wrong}, height 80, the file has 60 × 44");
        assert!(d.findings.to_string().contains(&words), "{}", d.findings);
    }

    let files = [dir.path().join("a.png"), dir.path().join("b.png")];
    let d = Dataset::from_files(&files, Vec::new()).unwrap();
    assert_eq!((d.images.len(), d.images[1].id, d.image_path(1)), (2, 2, files[1].clone()));
    assert!(Dataset::from_files(&[dir.path().join("c.png")], Vec::new()).is_err());
}

/// The notes of training and of evaluation for the good file with these changes.
fn notes(edit: impl FnOnce(&mut Value)) -> [Option<String>; 2] {
    let mut file = good();
    edit(&mut file);
    let d = read(&file);
    let tail = format!(": `dataset check {} --images {}` names them", d.path.display(), d.images_dir.display());
    [d.training_note(TrainFilter::default()), d.evaluation_note()]
        .map(|note| note.map(|n| n.strip_suffix(&tail).unwrap_or_else(|| panic!("{n}: want {tail}")).to_string()))
}

#[test]
fn what_is_left_out_is_told_in_one_line() {
    let told = |edit: &dyn Fn(&mut Value), train: &str, eval: &str| {
        let want = [train, eval].map(|text| (!text.is_empty()).then(|| text.to_string()));
        assert_eq!(notes(edit), want);
    };
    // Nothing left out, and only what is left out by design.
    told(&|_| (), "", "");
    told(&|f| f["annotations"][2]["iscrowd"] = json!(1), "", "");
    told(&|f| f["annotations"][0]["ignore"] = json!(1), "", "");
    told(&|f| f["annotations"] = json!([]), "", "");
    told(&|f| f["annotations"][1] = f["annotations"][0].clone(), "", "");
    // One annotation whose image keeps others, and the only one of an image.
    let (one, negative) = ("1 of 3 annotations", "1 × box of negative width or height");
    let missed = format!("1 of 3 annotations counts as missed whatever is detected ({negative})");
    told(&|f| f["annotations"][0]["bbox"][2] = json!(-1), &format!("{one} is not used ({negative})"), &missed);
    let both = format!("{one} and 1 of 2 images are not used ({negative})");
    told(&|f| f["annotations"][2]["bbox"][2] = json!(-1), &both, &missed);
    let nan = "1 × box with NaN, infinity or a number beyond ±1e9";
    let edit = |f: &mut Value| f["annotations"][2]["bbox"][2] = json!(null);
    told(&edit, &format!("{one} and 1 of 2 images are not used ({nan})"), &format!("{one} is not measured ({nan})"));
    let edit = |f: &mut Value| {
        f["annotations"][0]["bbox"][2] = json!(-1);
        f["annotations"][0].as_object_mut().unwrap().remove("area");
    };
    told(&edit, &format!("{one} is not used ({negative})"), &format!("{one} is not measured ({negative})"));
    told(&|f| f["annotations"][0]["area"] = json!(0), &format!("{one} is not used (1 × `area` not above 0)"), "");
    // An unusable image entry: its annotations are counted with the reason that follows for them.
    let what = "1 of 3 annotations and 1 of 2 images are not";
    let why = "1 × unusable entry in `images`, 1 × annotation of an unknown image";
    let of = |what: &str, why: &str| [format!("{what} used ({why})"), format!("{what} measured ({why})")];
    let [train, eval] = of(what, why);
    told(&|f| f["images"][1]["id"] = json!("abc"), &train, &eval);
    let [train, eval] = of(what, "1 × image of unknown size, 1 × annotation of such an image");
    told(&|f| f["images"][1]["width"] = json!(4_000_000_000u64), &train, &eval);
    // Several reasons, each annotation counted once.
    let edit = |f: &mut Value| {
        f["annotations"][0]["category_id"] = json!(99);
        f["annotations"][1]["bbox"] = json!([200, 5, 20, 20]);
        f["annotations"][2]["bbox"] = json!([5, 5, 20]);
    };
    let [unknown, four] = ["1 × annotation of an unknown category", "1 × `bbox` is not four numbers"];
    let outside = "1 × box outside its image";
    told(
        &edit,
        &format!("3 of 3 annotations and 2 of 2 images are not used ({unknown}, {four}, {outside})"),
        &format!("2 of 3 annotations are not measured ({unknown}, {four}); {}", missed.replace(negative, outside)),
    );
    // Images without objects that are kept are used.
    let d = read(&{
        let mut file = good();
        file["annotations"][2]["bbox"][2] = json!(0);
        file
    });
    let note = d.training_note(TrainFilter { empty_gt: false, ..TrainFilter::default() }).unwrap();
    assert!(note.starts_with("1 of 3 annotations is not used (1 × box of zero width or height): "), "{note}");
}
