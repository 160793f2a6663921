//! All options of `evaluate` and `detect`, on a small detector with masks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::support::programs::{run as run_program, *};
use serde_json::Value;
use upres::data::{BadImages, Category, Dataset, ImageStore, Masks, ReadOptions};
use upres::detect::found::Detection;
use upres::detect::infer::Detector;
use upres::detect::tta::View;
use upres::device::Device;
use upres::eval::{Evaluator, RleMask, read_results};

/// A finished run of one short stage with masks.
fn mask_run() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("masks-cli_evaluate");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let text = tiny_recipe(shapes());
        let (first, _) = text.split_at(text.rfind("[[stage]]").unwrap());
        let masks = "[model]\ndetector = \"mask_rcnn\"\nmask_head = { convs = 1, channels = 8, sampling_ratio = 2 }\n";
        let recipe = folder.join("tiny.toml");
        fs::write(&recipe, first.replace("[model]\n", masks)).unwrap();
        let ran = train(&recipe, &folder.join("run"), &["--set", "stage.0.ema=0"]).done();
        assert!(ran.err.contains("mask AP ") && ran.err.contains("mask AP50 "), "{}", ran.err);
        folder.join("run")
    })
}

fn evaluate_on(data: &Path, more: &[&str]) -> Ran {
    let mut args = vec![last(mask_run()), "--annotations".into(), data.join("annotations/val.json"), "--images".into()];
    args.push(data.join("images/val"));
    args.extend(more.iter().map(Into::into));
    run_program("evaluate", args)
}

#[test]
fn masks_are_measured_and_everything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (numbers, found, matrix) = (path("numbers.json"), path("found.json"), path("matrix.json"));
    let more = ["--json", &numbers, "--detections", &found, "--tide", "--confusion", &matrix, "--confusion-score", "0"];
    let ran = evaluate_on(shapes(), &more).done();
    assert_eq!(ran.err, "");
    assert_eq!(ran.out.matches("Average Precision").count() + ran.out.matches("Average Recall").count(), 24);
    for text in ["boxes:", "masks:", "small  medium   large", "errors of boxes", "errors of masks", "true \\ found as"]
    {
        assert!(ran.out.contains(text), "{text}: {}", ran.out);
    }

    // The files agree with each other, with the library and with the training run.
    let rows = read_results(Path::new(&found)).unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|r| r.segmentation.is_some()));
    let options = ReadOptions { masks: Masks::Read, ..ReadOptions::default() };
    let truth = Dataset::load_with(shapes().join("annotations/val.json"), "", options).unwrap();
    let evaluator = Evaluator::with_masks(&truth).unwrap();
    let (numbers, run) = (json(Path::new(&numbers)), json(&mask_run().join("metrics.json")));
    for m in [evaluator.evaluate(&rows).unwrap(), evaluator.evaluate_masks(&rows).unwrap()] {
        assert!(ran.out.contains(&m.to_string()));
        for (key, value) in m.by_key() {
            assert_eq!(numbers["metrics"][&key].as_f64(), Some(value), "{key}");
            assert_eq!(run["metrics"][&key].as_f64(), Some(value), "{key}");
        }
    }
    assert_eq!(numbers["per_class"], run["per_class"]);
    assert!(
        ["ap", "ap50", "ap_small", "ap_large", "segm_ap", "segm_ap50", "segm_ap_medium"]
            .iter()
            .all(|key| numbers["per_class"]["star"][key].is_number())
    );
    assert_eq!((&numbers["images"], &numbers["skipped"]), (&6.into(), &0.into()));
    assert_eq!(numbers["left_out"], serde_json::json!([]));
    assert_eq!(numbers["detections"].as_u64(), Some(rows.len() as u64));
    assert!(["bbox", "segm"].iter().all(|kind| numbers["tide"][kind]["missed"]["count"].is_u64()));
    assert_eq!(numbers["confusion"], json(Path::new(&matrix)));
    let counts: Vec<Vec<u64>> = serde_json::from_value(numbers["confusion"]["counts"].clone()).unwrap();
    let objects: usize = truth.annotations.iter().flatten().filter(|a| !a.iscrowd).count();
    assert_eq!(counts.iter().take(counts.len() - 1).flatten().sum::<u64>(), objects as u64, "each object is in a row");
    let report = fs::read_to_string(mask_run().join("report.html")).unwrap();
    assert!(["mask AP", "mask AP50", "<th>masks</th>"].iter().all(|text| report.contains(text)));
}

#[test]
fn views_are_merged() {
    let plain = evaluate_on(shapes(), &[]).done();
    assert_eq!(evaluate_on(shapes(), &["--tta", "scales=1.0"]).done().out, plain.out, "one view, as without");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("n.json");
    evaluate_on(shapes(), &["--tta", "scales=0.5,1,1.5,flip", "--json", out.to_str().unwrap()]).done();
    let views = &json(&out)["views"];
    assert_eq!(views.as_array().unwrap().len(), 6);
    assert_eq!(views[5], serde_json::json!({ "scale": 1.5, "flip": true }));
}

/// The detections of a detector in single pictures.
fn found(detector: &mut Detector, pictures: &[PathBuf], views: &[View]) -> Vec<Vec<Detection>> {
    let names = detector.classes().iter().zip(1..);
    let categories = names.map(|(name, id)| Category { id, name: name.clone() }).collect();
    let dataset = Arc::new(Dataset::from_files(pictures, categories).unwrap());
    let store = Arc::new(ImageStore::new(dataset, BadImages::Fail, 0));
    detector.detect_views(&store, 2, views, |_, _| ()).unwrap().into_iter().map(|i| i.found).collect()
}

/// The mirrored view of a picture, and the mirrored picture: the same detections to the bit, mirrored.
#[test]
fn a_mirrored_picture_has_mirrored_detections() {
    let dir = tempfile::tempdir().unwrap();
    let mut pictures: Vec<_> = fs::read_dir(shapes().join("images/val")).unwrap().map(|e| e.unwrap().path()).collect();
    pictures.sort();
    let mirrored: Vec<PathBuf> = (0..pictures.len()).map(|i| dir.path().join(format!("{i}.png"))).collect();
    for (from, to) in pictures.iter().zip(&mirrored) {
        image::imageops::flip_horizontal(&image::open(from).unwrap().to_rgb8()).save(to).unwrap();
    }
    let mut detector = Detector::load(&last(mask_run()), &Device::cpu()).unwrap();
    assert!(detector.has_masks());
    let flip = View { scale: 1.0, flip: true };
    let in_mirror = found(&mut detector, &pictures, &[flip]);
    let of_mirrored = found(&mut detector, &mirrored, &[View::PLAIN]);
    assert!(in_mirror.iter().any(|f| !f.is_empty()));
    for (a, b) in in_mirror.iter().flatten().zip(of_mirrored.iter().flatten()) {
        let ([x0, y0, x1, y1], width) = (b.bbox, b.mask.as_ref().unwrap().size[1] as f32);
        let mask = b.mask.as_ref().map(|m| m.mirrored().unwrap());
        assert_eq!(*a, Detection { bbox: [width - x1, y0, width - x0, y1], mask, ..b.clone() });
        let polygons = a.drawn().unwrap().polygons;
        assert_eq!(polygons.is_empty(), a.mask.as_ref().unwrap().area_and_bbox().unwrap().0 == 0);
    }
    // With both views, it does not matter which way round the picture is.
    let both = [View::PLAIN, flip];
    let scores =
        |f: Vec<Vec<Detection>>| f.iter().map(|f| f.iter().map(|d| d.score).collect()).collect::<Vec<Vec<_>>>();
    let (a, b) = (found(&mut detector, &pictures, &both), found(&mut detector, &mirrored, &both));
    assert!(a.iter().flatten().count() >= in_mirror.iter().flatten().count() / 2);
    assert_eq!(scores(a), scores(b));
}

#[test]
fn ground_truth_without_masks() {
    let dir = folder_with_data();
    let (data, file) = (dir.path().join("data"), dir.path().join("data/annotations/val.json"));
    let whole = json(&file);
    let write = |edit: &dyn Fn(usize, &mut serde_json::Map<String, Value>)| {
        let mut truth = whole.clone();
        let all = truth["annotations"].as_array_mut().unwrap().iter_mut().enumerate();
        all.for_each(|(i, a)| edit(i, a.as_object_mut().unwrap()));
        fs::write(&file, truth.to_string()).unwrap();
    };
    write(&|_, a| drop(a.remove("segmentation")));
    let ran = evaluate_on(&data, &[]).done();
    assert!(
        ran.err.starts_with("note: masks are not measured, only boxes: ") && ran.err.contains("val.json"),
        "{ran:?}"
    );
    assert_eq!(ran.out.matches("Average Precision").count(), 6, "{}", ran.out);
    assert!(!ran.out.contains("masks:"));
    write(&|i, a| {
        if i == 0 {
            a.insert("segmentation".into(), serde_json::json!([[1, 2]]));
        }
    });
    let ran = evaluate_on(&data, &[]).done();
    assert!(ran.err.starts_with("note: 1 of ") && ran.err.contains("dataset check"), "{ran:?}");
    assert!(ran.out.contains("masks:"));
}

/// Ground truth boxes that nothing can match, and invalid boxes.
#[test]
fn ground_truth_that_is_not_measured() {
    let dir = folder_with_data();
    let (data, file) = (dir.path().join("data"), dir.path().join("data/annotations/val.json"));
    let mut truth = json(&file);
    let n = truth["annotations"].as_array().unwrap().len();
    truth["annotations"][0]["bbox"][2] = serde_json::json!(-5);
    truth["annotations"][1]["bbox"] = serde_json::json!([1, 2, null, 4]);
    fs::write(&file, truth.to_string()).unwrap();
    let ran = evaluate_on(&data, &[]).done();
    let want = format!(
        "note: ground truth: 1 of {n} annotations is not measured (1 × box with NaN, infinity or a number beyond \
         ±1e9); 1 of {n} annotations counts as missed whatever is detected (1 × box of negative width or height): `dataset \
         check {} --images {}` names them\n",
        file.display(),
        data.join("images/val").display()
    );
    assert_eq!(ran.err, want);
    let numbers = dir.path().join("numbers.json");
    evaluate_on(&data, &["--json", numbers.to_str().unwrap()]).done();
    assert_eq!(want, format!("note: {}\n", json(&numbers)["left_out"][0].as_str().unwrap()));
}

#[test]
fn wrong_usage_is_said_clearly() {
    for (args, part) in [
        (&["--tta", "flop"][..], "want flip"),
        (&["--tta", "scales=9"], "scale 9: want 0.25 to 4"),
        (&["--tta", "scales=x"], "want a number"),
        (&["--tta", ""], "want flip"),
        (&["--confusion", "--confusion-score", "2"], "from 0 to 1"),
        (&["--confusion-score", "0.5"], "--confusion"),
        (&["--tide=yes"], "--tide"),
    ] {
        let ran = evaluate_on(shapes(), args);
        assert!(ran.code == Some(2) && ran.err.contains(part), "{args:?}: {ran:?}");
    }
    // Unwritable files are detected before the work. If writing one fails at the end, all others are written.
    for option in ["--json", "--confusion", "--detections"] {
        let ran = evaluate_on(shapes(), &[option, "none/out.json"]);
        assert_eq!(ran.out, "", "nothing was measured");
        ran.complains(&[option, "none/out.json", "no folder none", "make it"]);
    }
    if Path::new("/dev/full").exists() {
        let dir = tempfile::tempdir().unwrap();
        let found = dir.path().join("found.json");
        let ran = evaluate_on(shapes(), &["--json", "/dev/full", "--detections", found.to_str().unwrap()]);
        assert!(ran.out.contains("Average Precision") && read_results(&found).is_ok(), "{ran:?}");
        ran.complains(&["/dev/full"]);
    }
    let help = run_program("evaluate", ["--help"]).done().out;
    assert!(["--tta", "not averaged", "--tide", "--confusion", "--json"].iter().all(|word| help.contains(word)));
}

#[test]
fn detect_writes_and_draws_masks() {
    let dir = tempfile::tempdir().unwrap();
    let picture = fs::read_dir(shapes().join("images/val")).unwrap().next().unwrap().unwrap().path();
    let (width, height) = image::image_dimensions(&picture).unwrap();
    for views in [&[][..], &["--tta", "flip"]] {
        let mut args = vec![last(mask_run()), picture.clone(), "--out".into(), dir.path().into()];
        args.extend(["--score-threshold", "0.05"].iter().chain(views).map(PathBuf::from));
        run_program("detect", args).done();
        let rows = json(&dir.path().join("detections.json"));
        assert!(!rows.as_array().unwrap().is_empty());
        for row in rows.as_array().unwrap() {
            let mask: RleMask = serde_json::from_value(row["segmentation"].clone()).unwrap();
            assert_eq!(mask.size, [height, width]);
            assert!(mask.area_and_bbox().is_ok());
        }
    }
    let stem = picture.file_stem().unwrap().to_str().unwrap();
    assert!(image::open(dir.path().join(format!("{stem}.png"))).is_ok());
}
