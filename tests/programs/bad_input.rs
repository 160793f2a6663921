//! Bad input: each program ends with exit code 1 and one line that names the file and the key or id; nothing panics and
//! nothing is lost.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::programs::{run as run_program, *};

/// A tiny recipe, changed by `edit`, and the folder it lies in.
struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Case {
        Case { dir: folder_with_data() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn train(&self, edit: impl Fn(String) -> String, more: &[&str]) -> Ran {
        let recipe = self.path("tiny.toml");
        fs::write(&recipe, edit(tiny_recipe(&self.path("data")))).unwrap();
        let out = self.path("run");
        let _ = fs::remove_dir_all(&out);
        train(&recipe, &out, more)
    }

    /// Changes a JSON file.
    fn annotations(&self, split: &str, edit: impl Fn(String) -> String) {
        let path = self.path(&format!("data/annotations/{split}.json"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, edit(text)).unwrap();
    }

    /// The first training picture.
    fn picture(&self) -> PathBuf {
        self.path("data/images/train").join(first_picture())
    }
}

#[test]
fn recipes() {
    let c = Case::new();
    train(&c.path("none.toml"), &c.path("run"), &[]).complains(&["none.toml", "no such file"]);
    assert!(!c.path("run").exists(), "nothing is left behind");
    let swap = |from: &'static str, to: &'static str| {
        move |text: String| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        }
    };
    for (from, to, parts) in [
        ("seed = 5", "sed = 5", &["tiny.toml", "sed", "seed"][..]),
        ("micro_batch = 2", "micro_batsh = 2", &["tiny.toml", "micro_batsh", "micro_batch"]),
        ("steps = 120", "steps = \"many\"", &["tiny.toml", "steps"]),
        ("steps = 120", "", &["tiny.toml", "stage.pretrain.epochs", "missing"]),
        ("images_per_step = 4", "images_per_step = 5", &["tiny.toml", "stage.pretrain.micro_batch", "5"]),
        ("[[stage]]", "[[stage", &["tiny.toml", "not TOML"]),
        (
            "steps = 120",
            "steps = 120\nbatch_norm = \"frozen\"",
            &["tiny.toml", "stage.pretrain.batch_norm", "init.weights"],
        ),
        (
            "steps = 120",
            "steps = 120\nfrozen_stages = 0",
            &["tiny.toml", "stage.pretrain.frozen_stages", "init.weights"],
        ),
        ("train = {", "#", &["tiny.toml", "data.train"]),
    ] {
        c.train(swap(from, to), &[]).complains(parts);
    }
    c.train(swap("[[stage]]", "[[stag]]"), &[]).complains(&["tiny.toml", "stag"]);
    let binary = c.path("binary.toml");
    fs::write(&binary, [0xFF, 0xFE, 0, 1]).unwrap();
    train(&binary, &c.path("run"), &[]).complains(&["binary.toml", "UTF-8"]);
    train(c.dir.path(), &c.path("run"), &[]).complains(&[c.dir.path().to_str().unwrap()]);
}

#[test]
fn overrides() {
    let c = Case::new();
    let set = |value: &str| c.train(|t| t, &["--set", value]);
    set("stage.pretrain.optimizer.lrr=1").complains(&["optimizer.lrr", "lr"]);
    set("stage.fintune.steps=3").complains(&["fintune", "finetune"]);
    set("stage.7.steps=3").complains(&["stage.7"]);
    set("model.backbone.width=wide").complains(&["model.backbone.width", "wide"]);
    set("stage.0.optimizer.lr=-1").complains(&["lr", "-1"]);
    assert_eq!(set("seed").code, Some(2), "no value: wrong usage");
}

#[test]
fn annotation_files() {
    let file = "data/annotations/train.json";
    let missing = Case::new();
    fs::remove_file(missing.path(file)).unwrap();
    missing.train(|t| t, &[]).complains(&["annotations/train.json"]);
    assert!(!missing.path("run").exists(), "the same command works once the file is there");

    type Edit = fn(String) -> String;
    let edits: [(Edit, &[&str]); 5] = [
        (|t| t[..t.len() / 2].to_string(), &["annotations/train.json"]),
        (|_| String::new(), &["annotations/train.json"]),
        (|t| t.replace("\"categories\"", "\"kategories\""), &["annotations/train.json", "categories"]),
        (|t| t.replace("\"images\"", "\"pictures\""), &["annotations/train.json", "images"]),
        (
            |t| t.replace("\"iscrowd\":0", "\"iscrowd\":1").replace("\"iscrowd\": 0", "\"iscrowd\": 1"),
            &["train.json", "no image to train on"],
        ),
    ];
    for (edit, parts) in edits {
        let c = Case::new();
        c.annotations("train", edit);
        c.train(|t| t, &[]).complains(parts);
    }

    // Validation with other categories than training.
    let c = Case::new();
    c.annotations("val", |t| t.replace("\"star\"", "\"moon\""));
    c.train(|t| t, &[]).complains(&["annotations/val.json", "categories"]);
    // A missing validation file is found before the first step.
    fs::remove_file(c.path("data/annotations/val.json")).unwrap();
    c.train(|t| t, &[]).complains(&["annotations/val.json"]);
}

/// Every program that reads a data set says what it leaves out, and the log records it. Clean data is silent.
#[test]
fn annotations_that_are_not_used() {
    let c = Case::new();
    let stop = &["--stop-after", "1"][..];
    let (plan, json) = (&["--plan"][..], &["--plan", "--json"][..]);
    let log = |c: &Case| fs::read_to_string(c.path("run/log.jsonl")).unwrap();
    let ran = c.train(|t| t, stop).done();
    assert!(!ran.err.contains(" not ") && !log(&c).contains("left_out"), "{ran:?}");
    let notes = |ran: Ran| serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["notes"].clone();
    let clean = notes(c.train(|t| t, json).done());

    c.annotations("train", |text| {
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        let first = file["images"][0]["id"].clone();
        let all = file["annotations"].as_array_mut().unwrap();
        all.iter_mut().filter(|a| a["image_id"] != first).for_each(|a| a["bbox"][2] = (-9).into());
        file.to_string()
    });
    c.annotations("val", |t| t.replacen("{\"id\":13,\"file_name\"", "{\"id\":\"x13\",\"file_name\"", 1));
    let ran = c.train(|t| t, stop).done();
    let lines: Vec<&str> = ran.err.lines().filter(|l| l.starts_with("train: ") || l.starts_with("val: ")).collect();
    assert!(lines.len() == 2, "one line for each split: {ran:?}");
    let log = log(&c);
    for (line, split, what) in [(lines[0], "train", "11 of 12 images are not used"), (lines[1], "val", "1 of 6 images")]
    {
        let hint = format!("`dataset check {}", c.path(&format!("data/annotations/{split}.json")).display());
        assert!(line.starts_with(split) && line.contains(what) && line.contains(&hint), "{line}");
        assert!(log.contains(line), "{line}: {log}");
        assert!(c.train(|t| t, plan).done().out.lines().any(|l| l == line), "{line}");
    }
    let all = notes(c.train(|t| t, json).done());
    let (all, clean) = (all.as_array().unwrap(), clean.as_array().unwrap());
    assert!(all[0] == lines[0] && all[1] == lines[1] && all[2..] == clean[..], "{all:?}");
}

#[test]
fn pictures() {
    let fail = |t: String| t.replace("[data]\n", "[data]\nbad_images = \"fail\"\n");
    let skip = |t: String| t.replace("[data]\n", "[data]\nbad_images = \"skip\"\n");
    let stop = &["--stop-after", "6"][..];
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 4] = [
        (|p| fs::remove_file(p).unwrap(), "not found"),
        (|p| fs::write(p, &fs::read(p).unwrap()[..500]).unwrap(), "corrupt"),
        (|p| fs::write(p, "no picture at all").unwrap(), "JPEG"),
        (|p| image::RgbImage::new(40, 50).save(p).unwrap(), "40"),
    ];
    for (damage, word) in damages {
        let c = Case::new();
        damage(&c.picture());
        c.train(fail, stop).complains(&[&first_picture(), word]);
        assert!(!c.path("run").exists() || last(&c.path("run")).exists(), "the same command works once it is mended");
        c.train(skip, stop).done();
        assert!(last(&c.path("run")).is_file());
    }
    // If every picture is missing, skipping them is not training.
    let c = Case::new();
    fs::remove_dir_all(c.path("data/images/train")).unwrap();
    c.train(skip, stop).complains(&["annotations/train.json"]);
}

/// Name of the first training picture.
fn first_picture() -> String {
    let mut all: Vec<_> =
        fs::read_dir(shapes().join("images/train")).unwrap().map(|e| e.unwrap().file_name()).collect();
    all.sort();
    all[0].to_str().unwrap().to_string()
}

#[test]
fn run_folders() {
    let c = Case::new();
    run_program("train", ["--resume".as_ref(), c.path("none").as_os_str()]).complains(&["nothing to resume", "none"]);
    fs::create_dir(c.path("empty")).unwrap();
    run_program("train", ["--resume".as_ref(), c.path("empty").as_os_str()]).complains(&["nothing to resume", "empty"]);
    // Neither a run nor anything else is ever overwritten.
    let run = finished_run();
    let before = fs::read(last(run)).unwrap();
    let recipe = write_recipe(c.dir.path(), shapes());
    train(&recipe, run, &["--stop-after", "1"]).complains(&[run.to_str().unwrap(), "--resume"]);
    assert_eq!(fs::read(last(run)).unwrap(), before);
    fs::write(c.path("file"), "x").unwrap();
    for out in ["file", "file/run"] {
        train(&recipe, &c.path(out), &[]).complains(&["--out", "file is a file: name a folder"]);
    }
    if Path::new("/proc/self").is_dir() {
        train(&recipe, Path::new("/proc/x"), &[])
            .complains(&["--out: /proc/x", "name a folder in which you may write"]);
    }
    assert_eq!(fs::read_to_string(c.path("file")).unwrap(), "x");
    // An override that does not fit the checkpoint is refused and not stored.
    c.train(|t| t, &["--stop-after", "2"]).done();
    let resume = |more: &[&str]| {
        let path = c.path("run");
        run_program("train", ["--resume", path.to_str().unwrap(), "--stop-after", "3"].iter().chain(more))
    };
    let wide = &["--set", "model.backbone.width=0.25"];
    resume(wide).complains(&["last.safetensors", "another model", "backbone.conv1.weight"]);
    resume(&["--set", "stage.pretrain.frozen=1"]).complains(&["recipe.toml", "frozen"]);
    resume(&[]).done();
    // A truncated last checkpoint.
    fs::write(last(&c.path("run")), &before[..before.len() / 2]).unwrap();
    run_program("train", ["--resume".as_ref(), c.path("run").as_os_str()])
        .complains(&["last.safetensors", "truncated"]);
}

/// Runs each program that reads checkpoints with `checkpoint`, everything else being right.
fn readers(checkpoint: &Path, c: &Case) -> [Ran; 3] {
    let path = |p: &str| c.path(p).into_os_string();
    let (file, weights) = (checkpoint.as_os_str(), format!("init.weights={}", checkpoint.display()));
    let (annotations, images) = (path("data/annotations/val.json"), path("data/images/val"));
    let evaluate = [file, "--annotations".as_ref(), &annotations, "--images".as_ref(), &images];
    let (out, picture) = (path("found"), c.picture().into_os_string());
    let detect = [file, &picture, "--out".as_ref(), &out];
    [
        run_program("evaluate", evaluate),
        run_program("detect", detect),
        c.train(|t| t, &["--stop-after", "1", "--set", &weights]),
    ]
}

#[test]
fn checkpoints() {
    let c = Case::new();
    let good = fs::read(last(finished_run())).unwrap();
    for ran in readers(&last(finished_run()), &c) {
        ran.done();
    }
    let check = |name: &str, bytes: Option<&[u8]>, parts: &[&str]| {
        let path = c.path(name);
        if let Some(bytes) = bytes {
            fs::write(&path, bytes).unwrap();
        }
        for ran in readers(&path, &c) {
            ran.complains(&[&[name], parts].concat());
        }
    };
    check("none.safetensors", None, &[]);
    check("empty.safetensors", Some(&[]), &["truncated"]);
    check("header.safetensors", Some(&good[..100]), &["truncated"]);
    check("half.safetensors", Some(&good[..good.len() / 2]), &["truncated"]);
    check("short.safetensors", Some(&good[..good.len() - 1]), &["truncated"]);
    check("text.safetensors", Some(b"weights, I swear, and more of them than eight bytes"), &["text.safetensors"]);
    check("foreign.safetensors", Some(b"\x02\0\0\0\0\0\0\0{}"), &["no upres metadata"]);
    check(
        "folder.safetensors",
        {
            fs::create_dir(c.path("folder.safetensors")).unwrap();
            None
        },
        &[],
    );

    // A value that is not finite, in a file without a checksum.
    let tensors = safetensors::SafeTensors::deserialize(&good).unwrap();
    let at = tensors.tensor("ema.backbone.conv1.weight").unwrap().data().as_ptr() as usize - good.as_ptr() as usize;
    let mut spoilt = good.clone();
    spoilt[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let checksum = spoilt.windows(8).position(|w| w == b"\"crc32c\"").unwrap();
    spoilt[checksum + 1..checksum + 7].copy_from_slice(b"nobody");
    check("nan.safetensors", Some(&spoilt), &["ema.backbone.conv1.weight holds NaN", "use another checkpoint"]);

    // A plan does not need the weights, but says what a run would say.
    let ran =
        c.train(|t| t, &["--plan", "--set", &format!("init.weights={}", c.path("nan.safetensors").display())]).done();
    assert!(ran.out.contains("\ninit.weights cannot be used here, a run would end with: "), "{ran:?}");
    assert!(ran.out.contains("backbone.conv1.weight holds NaN") && ran.out.contains("needs "), "{ran:?}");

    // Weights of another model are refused, and the error names the difference. With other classes, only the layers
    // that tell classes apart are learnt anew.
    let weights = format!("init.weights={}", last(finished_run()).display());
    let wide = |t: String| t.replace("width = 0.125", "width = 0.25");
    c.train(wide, &["--set", &weights]).complains(&["last.safetensors", "another model", "backbone.conv1.weight"]);
    for split in ["train", "val"] {
        c.annotations(split, |t| t.replacen("\"categories\":[", "\"categories\":[{\"id\":77,\"name\":\"moon\"},", 1));
    }
    let ran = c.train(|t| t, &["--set", &weights, "--stop-after", "1"]).done();
    assert!(ran.err.contains("init.weights: its classes (ellipse"), "{ran:?}");
}

#[test]
fn evaluation() {
    let c = Case::new();
    let checkpoint = last(finished_run());
    let evaluate = |c: &Case, split: &str| {
        let annotations = c.path(&format!("data/annotations/{split}.json"));
        let images = c.path(&format!("data/images/{split}"));
        let args = [checkpoint.as_path(), "--annotations".as_ref(), &annotations, "--images".as_ref(), &images];
        run_program("evaluate", args)
    };
    evaluate(&c, "none").complains(&["annotations/none.json"]);
    let whole = fs::read_to_string(c.path("data/annotations/val.json")).unwrap();
    let with =
        |edit: &dyn Fn(String) -> String| fs::write(c.path("data/annotations/val.json"), edit(whole.clone())).unwrap();
    with(&|t| t.replace("\"star\"", "\"moon\""));
    evaluate(&c, "val").complains(&["annotations/val.json", "\"star\""]);
    with(&|t| t.replacen("\"categories\":[", "\"categories\":[{\"id\":77,\"name\":\"moon\"},", 1));
    evaluate(&c, "val").complains(&["annotations/val.json", "\"moon\"", "77"]);
    with(&|t| t[..t.len() / 2].to_string());
    evaluate(&c, "val").complains(&["annotations/val.json"]);
    with(&|t| t);
    fs::remove_file(c.picture()).unwrap();
    evaluate(&c, "train").complains(&[&first_picture()]);
}

#[test]
fn detection() {
    let c = Case::new();
    let checkpoint = last(finished_run());
    let detect = |input: &Path, out: &Path| run_program("detect", [checkpoint.as_path(), input, "--out".as_ref(), out]);
    let out = c.path("found");
    detect(&c.path("none.png"), &out).complains(&["none.png", "not found"]);
    fs::create_dir(c.path("empty")).unwrap();
    detect(&c.path("empty"), &out).complains(&["empty", "no .jpg"]);
    assert!(!out.exists(), "nothing is left behind");
    fs::write(c.path("file"), "x").unwrap();
    detect(&c.picture(), &c.path("file")).complains(&["--out", "file is a file: name a folder"]);
    // A picture with a whole header and damaged pixels.
    let bytes = fs::read(c.picture()).unwrap();
    fs::write(c.path("cut.png"), &bytes[..bytes.len() / 2]).unwrap();
    detect(&c.path("cut.png"), &out).complains(&["cut.png", "corrupt"]);
}

/// A device that this build or machine lacks: one line that says so and what to do.
#[test]
fn devices_that_are_not_there() {
    let case = Case::new();
    let same = |recipe: String| recipe;
    if !cfg!(feature = "cuda-driver") {
        for device in ["cuda", "cuda:9"] {
            case.train(same, &["--device", device]).complains(&["cuda:", "--features cuda", "--device cpu"]);
        }
    } else if upres::device::choice::DeviceChoice::Cuda(0).open().is_err() {
        case.train(same, &["--device", "cuda:9"]).complains(&["cuda", "--device cpu"]);
    } else {
        case.train(same, &["--device", "cuda:99"]).complains(&["no device cuda:99", "cuda:0"]);
    }
    if !cfg!(feature = "sim") {
        case.train(same, &["--device", "sim"]).complains(&["sim: not in this build", "--features sim"]);
    }
    assert!(!case.path("run").exists(), "a refused device leaves no run behind");
    let doctor = run_program("train", ["--doctor"]).done();
    assert!(doctor.out.contains("device cpu") && doctor.out.contains("cuda"), "{doctor:?}");
}
