//! Output files that overwrite nothing, and a standard output that is closed or full.

use std::fs;
use std::path::Path;

use crate::support::programs::{run as run_program, *};

/// Runs every program in every way in which it prints. Each must have written its file before it prints.
#[cfg(target_os = "linux")]
#[test]
fn nothing_is_lost_where_nobody_listens() {
    use std::process::Stdio;
    // Runs a program whose standard output is closed.
    fn unheard(program: &str, args: &[&str]) -> Ran {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command(program).args(args).stdout(writer).stderr(Stdio::piped()).output().unwrap().into()
    }
    // Runs a program whose standard output is on a full disk.
    fn full(program: &str, args: &[&str]) -> Ran {
        let device = fs::File::options().write(true).open("/dev/full").unwrap();
        command(program).args(args).stdout(device).stderr(Stdio::piped()).output().unwrap().into()
    }

    let dir = tempfile::tempdir().unwrap();
    let checkpoint = last(finished_run());
    let (annotations, images) = (shapes().join("annotations/val.json"), shapes().join("images/val"));
    let (checkpoint, annotations, images) = (text(&checkpoint), text(&annotations), text(&images));
    let recipe = write_recipe(dir.path(), shapes());
    for (way, runs) in [("closed", unheard as fn(&str, &[&str]) -> Ran), ("full", full)] {
        let path = |name: &str| dir.path().join(format!("{way}-{name}")).to_str().unwrap().to_string();
        let (json, found, matrix) = (path("n.json"), path("d.json"), path("m.json"));
        let (run, out, weights, made, drawn) = (path("run"), path("found"), path("w.st"), path("made"), path("drawn"));
        let files = ["--json", &json, "--detections", &found, "--confusion", &matrix];
        let evaluate =
            [&["evaluate", checkpoint, "--annotations", annotations, "--images", images], &files[..]].concat();
        let with_images = ["dataset", "check", annotations, "--images", images];
        let whole = ["train", text(&recipe), "--out", &run, "--set", "stage.0.steps=4", "--set", "stage.1.steps=2"];
        let ways: [(&[&str], &[&str]); 10] = [
            (&evaluate, &[&json, &found, &matrix]),
            (&["detect", checkpoint, images, "--out", &out], &[&format!("{out}/detections.json")]),
            (&["convert", checkpoint, "--to", "mmdetection", &weights], &[&weights]),
            (
                &["dataset", "shapes", "--out", &made, "--train", "2", "--val", "1"],
                &[&format!("{made}/annotations/val.json")],
            ),
            (&["dataset", "draw", annotations, "--images", images, "--out", &drawn], &[&format!("{drawn}/sheet.png")]),
            (&["dataset", "stats", annotations], &[]),
            (&with_images, &[]),
            (&["train", "--doctor"], &[]),
            (&["train", text(&recipe), "--plan"], &[]),
            (
                &whole,
                &[
                    &format!("{run}/metrics.json"),
                    &format!("{run}/report.html"),
                    &format!("{run}/checkpoints/last.safetensors"),
                ],
            ),
        ];
        for (args, files) in ways {
            let ran = runs(args[0], &args[1..]);
            for file in files {
                assert!(fs::metadata(file).is_ok_and(|m| m.len() > 0), "{args:?}: {file} is not there: {ran:?}");
            }
            match way {
                "closed" => drop(ran.done()),
                _ => ran.complains(&[args[0], ": standard output: "]),
            }
        }
        // A stopped run, which has more to say on the error output.
        let (run, args) = (path("stopped"), ["--stop-after", "1"]);
        let ran = runs("train", &[&[text(&recipe), "--out", &run], &args[..]].concat());
        assert!(last(Path::new(&run)).is_file() && Path::new(&run).join("report.html").is_file(), "{ran:?}");
    }
    // The error output is closed too: a note and an error go nowhere.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = dir.path().join("quiet.safetensors");
    let mut quiet = command("convert");
    quiet.args([checkpoint, "--to", "torchvision", text(&out)]).stdout(writer.try_clone().unwrap()).stderr(writer);
    assert_eq!(quiet.status().unwrap().code(), Some(0), "it has a note");
    assert_eq!(quiet.status().unwrap().code(), Some(1), "the file is there already");
}

/// `evaluate` refuses output files that would overwrite its inputs or each other.
#[test]
fn evaluate_keeps_its_inputs() {
    let dir = folder_with_data();
    let path = |name: &str| dir.path().join(name);
    let (checkpoint, annotations, images) =
        (path("c.safetensors"), path("data/annotations/val.json"), path("data/images/val"));
    fs::copy(last(finished_run()), &checkpoint).unwrap();
    let before = [fs::read(&checkpoint).unwrap(), fs::read(&annotations).unwrap()];
    let evaluate = |more: &[&str]| {
        let args = [text(&checkpoint), "--annotations", text(&annotations), "--images", text(&images)];
        run_program("evaluate", args.iter().chain(more))
    };
    let (roundabout, new) = (path("data/../data/annotations/val.json"), path("new.json"));
    for option in ["--json", "--detections", "--confusion"] {
        for file in [&annotations, &roundabout] {
            evaluate(&[option, text(file)]).complains(&[option, "is the annotation file: name another file"]);
        }
        evaluate(&[option, text(&checkpoint)]).complains(&[option, "is the checkpoint: name another file"]);
        evaluate(&[option, text(&images)]).complains(&[option, "is a folder: name a file"]);
    }
    for pair in [["--json", "--detections"], ["--json", "--confusion"], ["--detections", "--confusion"]] {
        let again = path("data/../new.json");
        evaluate(&[pair[0], text(&new), pair[1], text(&again)]).complains(&[
            pair[1],
            "too: name another file",
            pair[0],
        ]);
    }
    assert_eq!([fs::read(&checkpoint).unwrap(), fs::read(&annotations).unwrap()], before);
    assert!(!new.exists());
    evaluate(&["--json", text(&new)]).done();
    evaluate(&["--json", text(&new)]).done(); // its own result is made anew
}

/// A folder without anything to show is no run to compare with.
#[test]
fn only_runs_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let (run, other) = (dir.path().join("run"), dir.path().join("zebra"));
    let compare = || train(&recipe, &run, &["--stop-after", "1", "--compare", text(&other)]);
    compare().complains(&["zebra", "--compare: no such run directory"]);
    fs::create_dir(&other).unwrap();
    compare().complains(&["zebra", "--compare: no run", "log.jsonl"]);
    assert!(!run.exists());
    fs::copy(finished_run().join("log.jsonl"), other.join("log.jsonl")).unwrap();
    compare().done();
    assert!(fs::read_to_string(run.join("report.html")).unwrap().contains("zebra"));
}
