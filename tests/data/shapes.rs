//! The built-in data set: always the same bytes, and annotations that fit the pictures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::fixtures::fnv1a;
use upres::data::shapes::{Class, ShapesOptions, Split, ensure, generate, render};

fn small() -> ShapesOptions {
    ShapesOptions { train: 6, val: 3, ..ShapesOptions::default() }
}

fn hashes(dir: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for folder in ["images/train", "images/val", "annotations"] {
        for entry in fs::read_dir(dir.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{folder}/{}", path.file_name().unwrap().to_str().unwrap());
            found.insert(name, fnv1a(&fs::read(&path).unwrap()));
        }
    }
    found
}

/// These bytes are promised: whoever changes them on purpose raises `VERSION` in shapes.rs and pins the new ones.
#[test]
fn bytes_are_pinned_for_any_number_of_threads() {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let (one, four) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pool(1).install(|| generate(one.path(), &small())).unwrap();
    pool(4).install(|| generate(four.path(), &small())).unwrap();
    let found = hashes(one.path());
    assert_eq!(found, hashes(four.path()));
    assert_eq!(found.len(), 6 + 3 + 2);
    let pixels = fnv1a(&render(&small(), Split::Train, 0).unwrap().rgb);
    let got = [
        pixels,
        found["images/train/000001.png"],
        found["images/val/000007.png"],
        found["annotations/train.json"],
        found["annotations/val.json"],
    ];
    let pinned = [
        0xA28B_50F6_ED5E_F9CD,
        0xA02C_9556_E7DC_E82F,
        0x13A1_8D2B_4718_8F35,
        0x1AEC_27A3_23CF_E029,
        0xAE9A_0B38_BEC5_A999,
    ];
    assert_eq!(got, pinned, "{got:#X?}");
}

#[test]
fn another_seed_split_or_index_is_another_picture() {
    let o = small();
    let base = render(&o, Split::Train, 0).unwrap();
    assert_eq!(base, render(&o, Split::Train, 0).unwrap());
    assert_ne!(base.rgb, render(&o, Split::Train, 1).unwrap().rgb);
    assert_ne!(base.rgb, render(&o, Split::Val, 0).unwrap().rgb);
    assert_ne!(base.rgb, render(&ShapesOptions { seed: 2, ..o }, Split::Train, 0).unwrap().rgb);
}

#[test]
fn annotation_files_are_coco_and_fit_the_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let summary = generate(dir.path(), &small()).unwrap();
    assert!(summary.written && summary.splits.len() == 2);
    for split in &summary.splits {
        let text = fs::read_to_string(&split.annotations).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        for key in ["info", "licenses", "images", "annotations", "categories"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        let names: Vec<&str> =
            json["categories"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, Class::ALL.map(Class::name));
        let coco = hotcoco::COCO::new(&split.annotations).unwrap();
        assert!(coco.load_warnings().is_empty(), "{:?}", coco.load_warnings());
        let mut sizes = BTreeMap::new();
        for image in json["images"].as_array().unwrap() {
            let png = image::open(split.images_dir.join(image["file_name"].as_str().unwrap())).unwrap();
            let size = (image["width"].as_u64().unwrap(), image["height"].as_u64().unwrap());
            assert_eq!(size, (u64::from(png.width()), u64::from(png.height())));
            sizes.insert(image["id"].as_u64().unwrap(), size);
        }
        assert_eq!(sizes.len(), split.images);
        let annotations = json["annotations"].as_array().unwrap();
        assert_eq!(annotations.len(), split.instances.iter().sum::<usize>());
        for a in annotations {
            let (w, h) = sizes[&a["image_id"].as_u64().unwrap()];
            let b: Vec<f64> = a["bbox"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            assert!(b[0] >= 0.0 && b[1] >= 0.0 && b[2] >= 3.0 && b[3] >= 3.0, "{a}");
            assert!(b[0] + b[2] <= w as f64 && b[1] + b[3] <= h as f64, "{a}");
            let (mut lo, mut hi) = ([f64::MAX; 2], [f64::MIN; 2]);
            for polygon in a["segmentation"].as_array().unwrap() {
                let xy: Vec<f64> = polygon.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
                assert!(xy.len() >= 6 && xy.len().is_multiple_of(2));
                for (i, v) in xy.iter().enumerate() {
                    lo[i % 2] = lo[i % 2].min(*v);
                    hi[i % 2] = hi[i % 2].max(*v);
                }
            }
            // the polygons fill the box; simplification may cut a corner of a pixel
            for (i, (l, u)) in lo.iter().zip(&hi).enumerate() {
                assert!(*l >= b[i] && *l <= b[i] + 1.0 && *u <= b[i] + b[i + 2] && *u >= b[i] + b[i + 2] - 1.0, "{a}");
            }
            let area = a["area"].as_f64().unwrap();
            assert!(area > 0.0 && area <= b[2] * b[3] && a["iscrowd"] == 0, "{a}");
        }
    }
}

#[test]
fn pictures_vary_in_size_shape_and_number_of_objects() {
    let o = ShapesOptions::default();
    let pictures: Vec<_> = (0..60).map(|i| render(&o, Split::Train, i).unwrap()).collect();
    let portrait = pictures.iter().filter(|p| p.height > p.width).count();
    assert!((8..40).contains(&portrait), "{portrait} of 60");
    let mut per_class = [0; 6];
    let (mut small, mut large, mut pieces) = (0, 0, 0);
    for p in &pictures {
        assert!((2..=10).contains(&p.shapes.len()));
        for s in &p.shapes {
            per_class[s.class as usize] += 1;
            let side = f64::from((s.bbox[2] - s.bbox[0]).max(s.bbox[3] - s.bbox[1]));
            small += usize::from(side < 20.0);
            large += usize::from(side > 60.0);
            pieces += usize::from(s.polygons.len() > 1);
        }
    }
    assert!(per_class.iter().all(|&n| n > 30), "{per_class:?}");
    assert!(small > 40 && large > 30 && pieces > 5, "{small} small, {large} large, {pieces} in pieces");
}

#[test]
fn ensure_writes_once_and_again_if_something_differs() {
    let dir = tempfile::tempdir().unwrap();
    let first = ensure(dir.path(), &small()).unwrap();
    assert!(first.written);
    let second = ensure(dir.path(), &small()).unwrap();
    assert!(!second.written);
    assert_eq!(first.splits, second.splits);
    fs::remove_file(dir.path().join("images/val/000008.png")).unwrap();
    assert!(ensure(dir.path(), &small()).unwrap().written);
    assert!(!ensure(dir.path(), &small()).unwrap().written);
    fs::write(dir.path().join("annotations/val.json"), "{\"info\"").unwrap();
    assert!(ensure(dir.path(), &small()).unwrap().written);
    assert!(ensure(dir.path(), &ShapesOptions { seed: 9, ..small() }).unwrap().written);
}

#[test]
fn a_folder_with_other_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let annotations = dir.path().join("annotations/train.json");
    fs::create_dir_all(annotations.parent().unwrap()).unwrap();
    fs::write(&annotations, "{\"images\": []}").unwrap();
    for result in [generate(dir.path(), &small()), ensure(dir.path(), &small())] {
        let text = result.unwrap_err().to_string();
        assert!(text.contains("did not make: choose another"), "{text}");
    }
    assert_eq!(fs::read_to_string(&annotations).unwrap(), "{\"images\": []}");
    assert!(!dir.path().join("images").exists());
}

#[test]
fn odd_options_work_or_are_refused_in_one_line() {
    let tiny = ShapesOptions { size: (48, 48), objects: (1, 40), train: 2, val: 0, ..small() };
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(generate(dir.path(), &tiny).unwrap().splits.len(), 1);
    for wrong in [
        ShapesOptions { train: 0, val: 0, ..small() },
        ShapesOptions { size: (0, 100), ..small() },
        ShapesOptions { size: (100, 5000), ..small() },
        ShapesOptions { objects: (5, 4), ..small() },
        ShapesOptions { objects: (0, 4), ..small() },
        ShapesOptions { train: 2_000_000, ..small() },
    ] {
        let text = generate(dir.path(), &wrong).unwrap_err().to_string();
        assert!(text.starts_with("shapes: ") && !text.contains('\n'), "{text}");
    }
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(generate(&file, &small()).unwrap_err().to_string().contains("file"));
}

#[test]
fn the_program_makes_checks_and_draws_the_set() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let out =
            std::process::Command::new(env!("CARGO_BIN_EXE_dataset")).args(args).current_dir(&dir).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code(), text)
    };
    let (code, text) = run(&["shapes", "--out", "s", "--train", "5", "--val", "2", "--seed", "7", "--size", "120x96"]);
    assert!(code == Some(0) && text.contains("5 images") && text.contains("crescent"), "{text}");
    assert_eq!(run(&["check", "s/annotations/train.json", "--images", "s/images/train"]).0, Some(0));
    let (code, text) =
        run(&["draw", "s/annotations/train.json", "--images", "s/images/train", "--out", "d", "--count", "3"]);
    assert!(code == Some(0) && text.contains("3 pictures"), "{text}");
    let drawn = fs::read_dir(dir.path().join("d")).unwrap().count();
    assert_eq!(drawn, 3 + 1);
    assert!(image::open(dir.path().join("d/sheet.png")).unwrap().width() > 3 * 120);
    // Nothing is overwritten, neither a data set nor another file with the name of a drawing. Drawings are replaced.
    let again = ["draw", "s/annotations/train.json", "--images", "s/images/train", "--out", "d", "--count", "3"];
    assert_eq!(run(&again).0, Some(0));
    for name in ["sheet.png", "drawn_000001.png"] {
        let (mine, path) =
            (fs::read(dir.path().join("s/images/train/000002.png")).unwrap(), dir.path().join("d").join(name));
        fs::write(&path, &mine).unwrap();
        let (code, text) = run(&again);
        assert!(code == Some(1) && text.starts_with("error: --out: ") && text.contains(name), "{text}");
        assert!(text.contains("exists already: name another file, or remove it"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), mine);
        fs::remove_file(&path).unwrap();
    }
    let before = hashes(&dir.path().join("s"));
    let (code, text) = run(&["shapes", "--out", "s", "--train", "1", "--val", "1"]);
    assert!(
        code == Some(1) && text.contains("annotations exists already: name another folder, or remove it"),
        "{text}"
    );
    assert_eq!(hashes(&dir.path().join("s")), before);
    fs::create_dir_all(dir.path().join("t/images")).unwrap();
    assert_eq!(run(&["shapes", "--out", "t", "--train", "1"]).0, Some(1));
    for command in [&["shapes", "--train", "1"][..], &again[..4]] {
        let (code, text) = run(&[command, &["--out", "s/annotations/val.json/x"]].concat());
        assert!(code == Some(1) && text.contains("val.json is a file: name a folder"), "{text}");
    }
    for (args, code, words) in [
        (vec!["shapes", "--out", "s", "--size", "20x20"], 1, "shapes: size"),
        (vec!["shapes", "--out", "s", "--size", "20"], 2, "WIDTHxHEIGHT"),
        (vec!["draw", "none.json", "--images", "s", "--out", "d"], 1, "none.json"),
        (vec!["draw", "s/annotations/val.json", "--images", "s/images/train", "--out", "d"], 1, "000006.png"),
    ] {
        let (got, text) = run(&args);
        assert!(got == Some(code) && text.contains(words) && !text.contains("panicked"), "{args:?}: {text}");
    }
}
