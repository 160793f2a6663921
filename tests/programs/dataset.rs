//! `dataset` as a user runs it: what it finds, counts, draws and makes, and its error messages.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::annotations::{good, write};
use serde_json::{Value, json};
use tempfile::TempDir;

fn dataset(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dataset")).args(args).current_dir(dir).output().unwrap()
}

#[test]
fn the_command_line() {
    let dir = TempDir::new().unwrap();
    let save = |name: &str, w: u32, h: u32| {
        let path = dir.path().join(name);
        image::save_buffer(path, &vec![9; (w * h * 3) as usize], w, h, image::ColorType::Rgb8).unwrap();
    };
    save("a.png", 100, 80);
    save("b.png", 100, 80);
    write(&dir, good().to_string());
    let out = dataset(&["check", "a.json", "--images", "."], dir.path());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success() && text.contains("2 of 2 image files are good") && text.contains("ready to train"),
        "{text}"
    );

    let out = dataset(&["stats", "a.json", "--long", "320", "--short", "240"], dir.path());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    for words in ["2 (2 to train on), 3 boxes", "100×80 (2)", "cat", "max_gt        8", "256×320 (2)"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }

    save("b.png", 80, 100);
    std::fs::write(dir.path().join("a.png"), "no picture").unwrap();
    let out = dataset(&["check", "a.json", "--images", "."], dir.path());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1));
    for words in [
        "does not decode",
        "image 1: ./a.png: neither JPEG nor PNG",
        "b.png: image 2: the file has 80 × 100",
        "2 fatal",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    std::fs::remove_file(dir.path().join("a.png")).unwrap();
    for (folder, words) in [("nope", "nope: image folder not found"), ("a.json", "a.json: is a file, not the image")] {
        for program in [&["check"][..], &["draw", "--out", "drawn"]] {
            let out = dataset(&[program, &["a.json", "--images", folder]].concat(), dir.path());
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            assert_eq!((out.status.code(), out.stdout.len(), text.lines().count()), (Some(1), 0, 1), "{text}");
            assert!(text.contains(words), "{text}");
        }
    }
    let out = dataset(&["check", "a.json", "--images", "."], dir.path());
    assert!(String::from_utf8_lossy(&out.stdout).contains("image file missing"));

    let out = dataset(&["check", "nothing.json", "--images", "."], dir.path());
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(text, "error: nothing.json: annotation file not found: check the path\n");
    assert_eq!(dataset(&["check"], dir.path()).status.code(), Some(2));
}

#[test]
fn nothing_to_train_on() {
    let dir = TempDir::new().unwrap();
    for name in ["a.png", "b.png"] {
        image::save_buffer(dir.path().join(name), &[0; 100 * 80 * 3], 100, 80, image::ColorType::Rgb8).unwrap();
    }
    let run = |file: &Value, program: &str| {
        write(&dir, file.to_string());
        let out = dataset(&[program, "a.json", "--images", "."], dir.path());
        (out.status.code(), String::from_utf8(out.stdout).unwrap())
    };
    let mut file = good();
    file["annotations"].as_array_mut().unwrap().iter_mut().for_each(|a| a["bbox"][2] = json!(-1));
    for (annotations, words) in
        [(json!([]), "`annotations` is empty"), (file["annotations"].clone(), "of 3 annotations")]
    {
        file["annotations"] = annotations;
        let (code, text) = run(&file, "check");
        assert!(code == Some(1) && text.contains(words) && text.contains("not usable as it is: 1 fatal"), "{text}");
        assert!(text.contains("0 boxes to train on") && text.contains("1 × nothing to train on"), "{text}");
        let (code, text) = run(&file, "stats");
        assert!(code == Some(0) && text.contains("buckets       none: there is no image to train on"), "{text}");
    }
    // An image that cannot be counted is reported.
    for width in [json!(null), json!(4_000_000_000u64)] {
        let mut file = good();
        file["images"][1]["width"] = width;
        file["images"][1]["file_name"] = json!("c.png");
        let (code, text) = run(&file, "stats");
        let want = "left out      1 of 3 annotations and 1 of 2 images are not used (1 × image of unknown size";
        assert!(code == Some(0) && text.contains(want), "{text}");
    }
    assert!(!run(&good(), "stats").1.contains("left out"));
}

#[test]
fn shapes_are_made_checked_and_drawn() {
    let dir = TempDir::new().unwrap();
    let size = ["--size", "96x64", "--train", "4", "--val", "2"];
    let made = dataset(&[&["shapes", "--out", "s"], size.as_slice()].concat(), dir.path());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(String::from_utf8_lossy(&made.stdout).contains("s/annotations/train.json: 4 images in s/images/train"));
    let checked = dataset(&["check", "s/annotations/val.json", "--images", "s/images/val"], dir.path());
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let draw = ["draw", "s/annotations/train.json", "--images", "s/images/train", "--out", "drawn", "--count", "3"];
    let drawn = dataset(&draw, dir.path());
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    assert_eq!(std::fs::read_dir(dir.path().join("drawn")).unwrap().count(), 4, "three copies and the sheet");
    let size = dataset(&["shapes", "--out", "t", "--size", "5x5"], dir.path());
    assert_eq!(size.status.code(), Some(1));
    let none = dataset(&["shapes", "--out", "t", "--train", "0", "--val", "0"], dir.path());
    let text = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(none.status.code() == Some(1) && text.contains("no picture at all: ask for at least one"), "{text}");
    let many = dataset(&["shapes", "--out", "t", "--train", &usize::MAX.to_string(), "--val", "2"], dir.path());
    assert_eq!(many.status.code(), Some(1));
    assert!(!dir.path().join("t").exists());
}
