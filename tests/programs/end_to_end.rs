//! Train, evaluate and detect end to end; runs that are killed, stopped or interrupted resume bit-exactly.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::programs::{run as run_program, *};
use safetensors::SafeTensors;
use serde_json::Value;
use upres::data::shapes::Class;

/// The metadata of a checkpoint.
fn meta(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["upres"]).unwrap()
}

fn step(run: &Path) -> u64 {
    meta(&last(run))["global_step"].as_u64().unwrap()
}

/// Lines of a run's log with this event.
fn events(run: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
    let all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(|v| v["event"] == name).collect()
}

/// Asserts that two checkpoints have the same tensors to the bit, and the same metadata except times.
#[track_caller]
fn assert_same_state(a: &Path, b: &Path) {
    let (x, y) = (fs::read(last(a)).unwrap(), fs::read(last(b)).unwrap());
    let (x, y) = (SafeTensors::deserialize(&x).unwrap(), SafeTensors::deserialize(&y).unwrap());
    let mut names = x.names();
    names.sort();
    let mut others = y.names();
    others.sort();
    assert_eq!(names, others);
    assert!(names.iter().any(|n| n.starts_with("momentum.")) && names.iter().any(|n| n.starts_with("ema.")));
    let differ: Vec<_> = names.iter().filter(|n| x.tensor(n).unwrap().data() != y.tensor(n).unwrap().data()).collect();
    assert!(differ.is_empty(), "{} of {} tensors differ, first {:?}", differ.len(), names.len(), differ[0]);
    let said = |run: &Path| {
        let mut m = meta(&last(run));
        m.as_object_mut().unwrap().retain(|key, _| key != "time_s");
        m
    };
    assert_eq!(said(a), said(b));
}

/// Asserts that no temporary file is left.
#[track_caller]
fn assert_tidy(run: &Path) {
    for folder in [run.to_path_buf(), run.join("checkpoints")] {
        let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let hidden: Vec<_> = names.filter(|n| n.starts_with('.') && n != ".lock").collect();
        assert!(hidden.is_empty(), "{hidden:?}");
    }
}

#[test]
fn train_leaves_a_complete_run() {
    let run = finished_run();
    for file in [
        "recipe.toml",
        "log.jsonl",
        "metrics.json",
        "report.html",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
        "checkpoints/stage-pretrain.safetensors",
        "checkpoints/stage-finetune.safetensors",
    ] {
        assert!(fs::metadata(run.join(file)).is_ok_and(|m| m.len() > 0), "{file} is missing or empty");
    }
    assert_eq!(step(run), STEPS);
    assert_eq!(events(run, "stage").len(), 2);
    assert_eq!(events(run, "end")[0]["reason"], "done");
    let losses = events(run, "train");
    // Short epochs have a log line too, however fast they pass.
    let logged: Vec<_> = losses.iter().map(|e| &e["global_step"]).collect();
    assert!(events(run, "eval").iter().all(|e| logged.contains(&&e["global_step"])), "{logged:?}");
    assert!(losses.iter().all(|e| e["losses"]["loss"].as_f64().unwrap().is_finite()));
    assert_tidy(run);
}

#[test]
fn evaluate_gives_the_numbers_of_the_training_run() {
    let (run, data, dir) = (finished_run(), shapes(), tempfile::tempdir().unwrap());
    let out = dir.path().join("found.json");
    let evaluate = |more: &[&str]| {
        let mut args = vec![last(run), "--annotations".into(), data.join("annotations/val.json"), "--images".into()];
        args.push(data.join("images/val"));
        args.extend(more.iter().map(Into::into));
        run_program("evaluate", args)
    };
    let all = evaluate(&["--detections", out.to_str().unwrap()]).done();
    assert_eq!(all.err, "", "no progress bar without a terminal");
    assert_eq!(all.out.matches("Average Precision").count() + all.out.matches("Average Recall").count(), 12);
    assert!(["ellipse", "star", "AP50"].iter().all(|w| all.out.contains(w)), "{}", all.out);
    assert_eq!(evaluate(&["--batch", "5", "--device", "cpu"]).done().out, all.out, "whatever the batch");

    let rows: Vec<upres::eval::ResultBox> = serde_json::from_value(json(&out)).unwrap();
    assert!(!rows.is_empty(), "an untrained head is sure of something at 0.05");
    let metrics =
        upres::eval::Evaluator::new(&upres::data::Dataset::load(data.join("annotations/val.json"), "").unwrap())
            .evaluate(&rows)
            .unwrap();
    assert_eq!(format!("{metrics}\n"), all.out);
    let logged = events(run, "eval").pop().unwrap();
    assert_eq!(logged["split"], "val");
    for (key, value) in metrics.by_key() {
        assert_eq!(logged["metrics"][&key].as_f64(), Some(value), "{key}: the average of the weights is evaluated");
    }
}

/// Categories in another order and with other ids are found by name.
#[test]
fn evaluate_matches_categories_by_name() {
    let (run, dir) = (finished_run(), folder_with_data());
    let file = dir.path().join("data/annotations/val.json");
    let images = dir.path().join("data/images/val");
    let plain =
        run_program("evaluate", [last(run), "--annotations".into(), file.clone(), "--images".into(), images.clone()]);
    let mut truth = json(&file);
    let new_id = |old: &Value| Value::from(100 - old.as_u64().unwrap());
    for category in truth["categories"].as_array_mut().unwrap() {
        category["id"] = new_id(&category["id"]);
    }
    for annotation in truth["annotations"].as_array_mut().unwrap() {
        annotation["category_id"] = new_id(&annotation["category_id"]);
    }
    truth.as_object_mut().unwrap().remove("info");
    fs::write(&file, truth.to_string()).unwrap();
    let turned = run_program("evaluate", [last(run), "--annotations".into(), file, "--images".into(), images]);
    assert_eq!(turned.done().out, plain.done().out);
}

#[test]
fn detect_writes_boxes_and_pictures() {
    let (run, dir) = (finished_run(), tempfile::tempdir().unwrap());
    let (images, out) = (shapes().join("images/val"), dir.path().join("found"));
    let one = fs::read_dir(&images).unwrap().next().unwrap().unwrap().path();
    let mut args = vec![last(run), images.clone(), one.clone(), "--out".into(), out.clone()];
    args.extend(["--score-threshold".into(), "0.06".into()]);
    let ran = run_program("detect", args).done();
    assert!(ran.err.is_empty() && ran.out.lines().count() == 1, "{ran:?}");
    let rows = json(&out.join("detections.json"));
    for row in rows.as_array().unwrap() {
        assert!(row["score"].as_f64().unwrap() >= 0.06);
        assert!(Class::ALL.iter().any(|c| row["category"] == c.name() && row["category_id"] == c.id()));
        let b: [f64; 4] = serde_json::from_value(row["bbox"].clone()).unwrap();
        assert!(b[0] >= 0.0 && b[1] >= 0.0 && b[0] + b[2] <= 64.01 && b[1] + b[3] <= 64.01, "{b:?}");
        assert!(Path::new(row["file_name"].as_str().unwrap()).is_file());
    }
    let stem = one.file_stem().unwrap().to_str().unwrap();
    let mut pictures: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()).collect();
    pictures.retain(|p| p.extension().is_some_and(|e| e == "png"));
    assert_eq!(pictures.len(), 7, "the picture given twice has two copies");
    assert!(out.join(format!("{stem}-2.png")).is_file());
    assert!(pictures.iter().all(|p| image::open(p).is_ok()));

    // Bad pictures are reported, and the good one is processed.
    let bad = dir.path().join("bad.jpg");
    fs::write(&bad, &fs::read(&one).unwrap()[..900]).unwrap();
    let none = dir.path().join("none.png");
    let out = dir.path().join("again");
    let ran = run_program("detect", [last(run), bad, one.clone(), none, "--out".into(), out.clone()]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let lines: Vec<_> = ran.err.lines().collect();
    assert!(lines.len() == 2 && lines.iter().all(|l| l.starts_with("error: ")), "{ran:?}");
    assert!(ran.err.contains("bad.jpg") && ran.err.contains("none.png"), "{ran:?}");
    assert!(out.join(format!("{stem}.png")).is_file() && out.join("detections.json").is_file());

    // A drawn copy never replaces the picture itself or any other existing file.
    let own = dir.path().join("other");
    fs::create_dir(&own).unwrap();
    fs::write(own.join(format!("{stem}.png")), "mine").unwrap();
    for _ in 0..2 {
        run_program("detect", [last(run), one.clone(), "--out".into(), own.clone()]).done();
    }
    assert!(own.join(format!("{stem}-2.png")).is_file() && !own.join(format!("{stem}-3.png")).exists());
    assert_eq!(fs::read_to_string(own.join(format!("{stem}.png"))).unwrap(), "mine", "nor in a second call");
    fs::write(own.join("detections.json"), "[{\"image_id\": 1}]").unwrap();
    run_program("detect", [last(run), one.clone(), "--out".into(), own.clone()]).complains(&[
        "--out",
        "detections.json is not of an earlier `detect`",
        "another folder",
    ]);
    assert_eq!(fs::read_to_string(own.join("detections.json")).unwrap(), "[{\"image_id\": 1}]");
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    fs::copy(&one, own.join("a.png")).unwrap();
    let before = fs::read(&one).unwrap();
    run_program("detect", [last(run), own.join("a.png"), "--out".into(), own.clone()]).done();
    assert_eq!(fs::read(own.join("a.png")).unwrap(), before);
    assert!(own.join("a-2.png").is_file());
}

/// Starts `train` with this number of threads.
fn start(args: &[&str], threads: usize) -> Child {
    let mut command = command("train");
    command.args(args).env("RAYON_NUM_THREADS", threads.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Kills a process after a while, unless it ends earlier; true if it was killed.
fn kill_after(mut child: Child, delay: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < delay {
        if child.try_wait().unwrap().is_some() {
            Ran::from(child.wait_with_output().unwrap()).done();
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap(); // SIGKILL: nothing is written any more
    let ran = Ran::from(child.wait_with_output().unwrap());
    if ran.code.is_some() {
        ran.done(); // it was quicker
        return false;
    }
    true
}

/// A run that is killed at random moments ends with the weights of an undisturbed run.
#[test]
fn a_killed_run_goes_on_bit_exactly() {
    let whole = finished_run();
    let took = Duration::from_secs_f64(events(whole, "end")[0]["time_s"].as_f64().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let run = dir.path().join("run");
    let (recipe, out) = (recipe.to_str().unwrap(), run.to_str().unwrap());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut random = now.subsec_nanos();
    let mut moments = Vec::new(); // step of the checkpoint that each start went on from
    for attempt in 0.. {
        let at = last(&run).is_file().then(|| step(&run));
        moments.push(at);
        if at.is_none() && run.exists() {
            fs::remove_dir_all(&run).unwrap(); // killed before there was anything to go on with
        }
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let share = 0.1 + 0.5 * f64::from(random >> 8) / f64::from(1 << 24);
        let patience = if attempt < 12 { took.mul_f64(share) } else { Duration::from_secs(600) };
        let args = if at.is_some() { ["--resume", out].to_vec() } else { [recipe, "--out", out].to_vec() };
        if !kill_after(start(&args, 1 + attempt % 2), patience) {
            break;
        }
    }
    let resumed = moments.iter().flatten().filter(|&&s| 0 < s && s < STEPS).count();
    eprintln!("went on from steps {moments:?}");
    assert!(resumed > 0, "the test killed nothing: {moments:?}");
    assert_same_state(whole, &run);
    assert_tidy(&run);
    // The log looks as if nothing had happened.
    let steps: Vec<_> = events(&run, "train").iter().map(|e| e["global_step"].as_u64().unwrap()).collect();
    assert!(steps.is_sorted_by(|a, b| a < b), "{steps:?}");
    assert_eq!((events(&run, "stage").len(), events(&run, "end").len()), (2, 1));
}

#[test]
fn a_stopped_run_goes_on_bit_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let run = dir.path().join("run");
    let out = run.to_str().unwrap();
    // Stops between checkpoints, at the end of a stage, and one step into the next.
    train(&recipe, &run, &["--stop-after", "7"]).done();
    assert_eq!(step(&run), 7);
    assert_eq!(events(&run, "end")[0]["reason"], "stopped");
    for steps in ["120", "121"] {
        run_program("train", ["--resume", out, "--stop-after", steps]).done();
        assert_eq!(step(&run).to_string(), steps);
    }
    run_program("train", ["--resume", out]).done();
    assert_same_state(finished_run(), &run);
    // Resuming a finished run succeeds and changes no weights.
    let again = run_program("train", ["--resume", out]);
    assert!(again.code == Some(0) && !again.err.contains("panicked"), "{again:?}");
    assert_same_state(finished_run(), &run);
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_after_the_step_with_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let run = dir.path().join("run");
    let args = [recipe.to_str().unwrap(), "--out", run.to_str().unwrap(), "--set", "stage.0.steps=100000"];
    let child = start(&args, 2);
    let begin = Instant::now();
    while events(&run, "train").is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing logged after a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    Ran::from(child.wait_with_output().unwrap()).done();
    let at = step(&run);
    assert!(at > 0 && at < 100_000);
    assert_eq!(events(&run, "end")[0]["reason"], "interrupted");
    assert_eq!(events(&run, "end")[0]["global_step"], at, "the checkpoint is of the last step done");
    let next = (at + 1).to_string();
    run_program("train", ["--resume", run.to_str().unwrap(), "--stop-after", &next]).done();
    assert_eq!(step(&run), at + 1);
}

/// If the disk fills up while a checkpoint is written, there is one error line, and the run resumes from the old
/// checkpoint.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let run = dir.path().join("run");
    train(&recipe, &run, &["--stop-after", "10"]).done();
    let before = fs::read(last(&run)).unwrap();
    // Files of at most 1 MiB (512-byte blocks in POSIX, 1024 in bash: at most 2); a checkpoint is larger.
    assert!(before.len() > 2 << 20, "{}", before.len());
    let script = "trap '' XFSZ; ulimit -f 2048; exec \"$0\" --resume \"$1\"";
    let train_program = command("train").get_program().to_owned();
    let limited = std::process::Command::new("sh").args(["-c", script]).arg(train_program).arg(&run).output().unwrap();
    Ran::from(limited).complains(&["last.safetensors", "not written", "untouched", "--resume"]);
    assert_eq!(fs::read(last(&run)).unwrap(), before);
    assert_tidy(&run);
    run_program("train", ["--resume", run.to_str().unwrap(), "--stop-after", "20"]).done();
    assert_eq!(step(&run), 20);
}

/// The best checkpoint is that of the best evaluation, including the last one of the run.
#[test]
fn the_best_checkpoint_is_of_the_best_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, run) = (dir.path().join("r.toml"), dir.path().join("run"));
    // One stage, one evaluation: at the very end.
    let text = tiny_recipe(shapes());
    fs::write(&recipe, &text[..text.rfind("[[stage]]").unwrap()]).unwrap();
    train(&recipe, &run, &["--set", "stage.0.eval_every_epochs=0", "--set", "stage.0.steps=10"]).done();
    assert_eq!(events(&run, "eval").len(), 1);
    let meta = meta(&run.join("checkpoints/best.safetensors"));
    assert_eq!((meta["global_step"].as_u64(), meta["best_ap"].is_number()), (Some(10), true));

    let best = finished_run().join("checkpoints/best.safetensors");
    let evals = events(finished_run(), "eval");
    let ap = |e: &Value| e["metrics"]["bbox_ap"].as_f64().unwrap();
    let highest = evals.iter().map(ap).fold(f64::MIN, f64::max);
    let first = evals.iter().find(|e| ap(e) == highest).unwrap();
    assert_eq!(self::meta(&best)["global_step"], first["global_step"]);
}

/// If a picture is missing in the first evaluation, no step is lost: the resumed run starts with that evaluation.
#[test]
fn a_failed_evaluation_loses_nothing() {
    let dir = folder_with_data();
    let data = dir.path().join("data");
    let (recipe, run) = (write_recipe(dir.path(), &data), dir.path().join("run"));
    let picture = fs::read_dir(data.join("images/val")).unwrap().next().unwrap().unwrap().path();
    let away = dir.path().join("away.png");
    fs::rename(&picture, &away).unwrap();
    // Evaluations come every 20 epochs of 3 steps.
    let ran = train(&recipe, &run, &["--set", "stage.0.checkpoint_every_steps=0", "--stop-after", "70"]);
    ran.complains(&[picture.file_name().unwrap().to_str().unwrap()]);
    assert_eq!((step(&run), meta(&last(&run))["evaluation_due"].as_bool()), (60, Some(true)));
    fs::rename(&away, &picture).unwrap();
    run_program("train", ["--resume", run.to_str().unwrap(), "--stop-after", "61"]).done();
    let evals = events(&run, "eval");
    assert_eq!((evals.len(), evals[0]["global_step"].as_u64(), step(&run)), (1, Some(60), 61));
    assert_eq!(meta(&last(&run))["evaluation_due"].as_bool(), Some(false));
}

#[test]
fn one_process_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, run) = (write_recipe(dir.path(), shapes()), dir.path().join("run"));
    train(&recipe, &run, &["--stop-after", "1"]).done();
    let log = fs::read(run.join("log.jsonl")).unwrap();
    let lock = fs::File::open(run.join(".lock")).unwrap();
    lock.lock().unwrap();
    run_program("train", ["--resume", run.to_str().unwrap()]).complains(&["another process"]);
    drop(lock);
    // The resume is refused for another reason, and the log stays unchanged.
    let args = ["--resume", run.to_str().unwrap(), "--set", "model.backbone.width=0.25"];
    run_program("train", args).complains(&["another model"]);
    assert_eq!(fs::read(run.join("log.jsonl")).unwrap(), log);
    run_program("train", ["--resume", run.to_str().unwrap(), "--stop-after", "2"]).done();
}

/// A resumed run reports changed settings with the name of their stage. It does not report a number that an older
/// program wrote with all digits an f32 has as f64.
#[test]
fn a_resumed_run_says_what_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, run) = (write_recipe(dir.path(), shapes()), dir.path().join("run"));
    train(&recipe, &run, &["--stop-after", "1"]).done();
    let file = run.join("recipe.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("nms_iou = 0.7\n"), "{text}");
    fs::write(&file, text.replace("nms_iou = 0.7\n", "nms_iou = 0.699999988079071\n")).unwrap();
    let resume = |steps: &str, more: &[&str]| {
        let args = [&["--resume", run.to_str().unwrap(), "--stop-after", steps], more].concat();
        run_program("train", args).done().err
    };
    assert!(!resume("2", &[]).contains("from here on"));
    let said = resume("3", &["--set", "stage.1.flip=0.25"]);
    assert_eq!(
        said.lines().find(|l| l.contains("from here on")),
        Some("from here on stage.finetune.flip: 0.25, was 0.5")
    );
}

/// Another order of the categories would change the meaning of every output.
#[test]
fn a_resumed_run_has_its_classes() {
    let dir = folder_with_data();
    let data = dir.path().join("data");
    let (recipe, run) = (write_recipe(dir.path(), &data), dir.path().join("run"));
    train(&recipe, &run, &["--stop-after", "1"]).done();
    for split in ["train", "val"] {
        let file = data.join(format!("annotations/{split}.json"));
        let mut truth = json(&file);
        truth["categories"][0]["name"] = "blob".into();
        fs::write(&file, truth.to_string()).unwrap();
    }
    run_program("train", ["--resume", run.to_str().unwrap()]).complains(&["last.safetensors", "ellipse", "blob"]);
    let weights = format!("init.weights={}", last(&run).display());
    let ran = train(&recipe, &dir.path().join("new"), &["--set", &weights, "--stop-after", "1"]).done();
    assert!(ran.err.contains("init.weights: its classes (ellipse"), "{ran:?}");
}

/// The built-in data set is generated where it is missing.
#[test]
fn the_built_in_data_set_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("made");
    let built_in = format!(
        "[data]\nbuilt_in = \"shapes\"\nshapes = {{ folder = \"{}\", train = 12, val = 6, size = 96 }}\n",
        data.display()
    );
    let recipe = dir.path().join("r.toml");
    fs::write(&recipe, tiny_recipe(&data).replace("[data]\n", &built_in)).unwrap();
    train(&recipe, &dir.path().join("run"), &["--stop-after", "2"]).done();
    assert_eq!(fs::read_dir(data.join("images/train")).unwrap().count(), 12);
    assert_eq!(fs::read_dir(data.join("images/val")).unwrap().count(), 6);
}

#[test]
fn a_seed_makes_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let weights = |name: &str, seed: &str| {
        let run = dir.path().join(name);
        train(&recipe, &run, &["--stop-after", "2", "--seed", seed]).done();
        let bytes = fs::read(last(&run)).unwrap();
        SafeTensors::deserialize(&bytes).unwrap().tensor("backbone.conv1.weight").unwrap().data().to_vec()
    };
    let one = weights("a", "1");
    assert_eq!(one, weights("b", "1"));
    assert_ne!(one, weights("c", "2"));
}
