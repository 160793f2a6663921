//! `convert`, and `train` from weights of other programs, as a user runs them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::programs::{run as run_program, *};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

const PROGRAMS: [&str; 2] = ["torchvision", "mmdetection"];

/// The classes of the finished run, in order.
fn classes() -> Vec<String> {
    let bytes = fs::read(last(finished_run())).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let meta: serde_json::Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["upres"]).unwrap();
    serde_json::from_value(meta["classes"].clone()).unwrap()
}

/// Exports the weights of the finished run for another program.
fn exported(dir: &Path, program: &str) -> PathBuf {
    let out = dir.join(format!("{program}.safetensors"));
    let ran = run_program("convert", [text(&last(finished_run())), "--to", program, text(&out)]).done();
    assert!(ran.out.contains("tensors") && ran.out.contains(text(&out)), "{ran:?}");
    let has_notes = ran.err.contains("note: model.box_head.aligned is true, there it is false");
    assert_eq!(has_notes, program == "torchvision", "{ran:?}");
    out
}

fn from(weights: &Path, program: &str, classes: &str, out: &Path, more: &[&str]) -> Ran {
    let recipe = finished_run().join("recipe.toml");
    let args = [text(weights), "--from", program, "--recipe", text(&recipe), "--classes", classes, text(out)];
    run_program("convert", args.into_iter().chain(more.iter().copied()))
}

/// The detections of `detect` in the validation pictures.
fn detections(checkpoint: &Path, dir: &Path) -> String {
    let (out, images) = (dir.join("found"), shapes().join("images/val"));
    run_program("detect", [text(checkpoint), text(&images), "--out", text(&out), "--score-threshold", "0.05"]).done();
    fs::read_to_string(out.join("detections.json")).unwrap()
}

/// Copies the tensors of a file under other names; tensors without a new name are left out.
fn renamed(from: &Path, to: &Path, name: impl Fn(&str) -> Option<String>) {
    let bytes = fs::read(from).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let views: Vec<(String, TensorView<'_>)> = file.tensors();
    let kept = views.into_iter().filter_map(|(n, v)| Some((name(&n)?, v)));
    fs::write(to, safetensors::serialize(kept, None).unwrap()).unwrap();
}

#[test]
fn there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let want = detections(&last(finished_run()), dir.path());
    assert!(want.contains("\"score\""), "nothing to compare: {want}");
    for program in PROGRAMS {
        let weights = exported(dir.path(), program);
        let checkpoint = dir.path().join(format!("{program}-back.safetensors"));
        from(&weights, program, &classes().join(","), &checkpoint, &[]).done();
        assert_eq!(detections(&checkpoint, dir.path()), want, "{program}");
    }
}

/// Class names of which some are left out ("-", "N/A"): the others keep their positions in the weights.
#[test]
fn classes_may_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let weights = exported(dir.path(), "torchvision");
    let mut names = classes();
    (names[0], names[2]) = ("-".into(), "N/A".into());
    let file = dir.path().join("names.txt");
    fs::write(&file, names.join("\n") + "\n").unwrap();
    let out = dir.path().join("c.safetensors");
    from(&weights, "torchvision", text(&file), &out, &[]).done();
    let found: Vec<serde_json::Value> = serde_json::from_str(&detections(&out, dir.path())).unwrap();
    assert!(!found.is_empty());
    for f in found {
        let (id, name) = (f["category_id"].as_u64().unwrap() as usize, f["category"].as_str().unwrap());
        assert!(id != 1 && id != 3 && names[id - 1] == name, "{f}");
    }
}

#[test]
fn training_starts_from_foreign_weights() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let start = |weights: &Path, more: &[&str]| {
        let (set, out) = (format!("init.weights={}", weights.display()), dir.path().join("run"));
        let _ = fs::remove_dir_all(&out);
        let args = [&["--set", &set, "--stop-after", "1"], more].concat();
        train(&recipe, &out, &args)
    };
    for program in PROGRAMS {
        let ran = start(&exported(dir.path(), program), &[]).done();
        assert!(!ran.err.contains("anew"), "{ran:?}");
    }
    // A backbone from a complete classifier. With it batch norm may be frozen from the first step.
    let (weights, backbone) = (dir.path().join("torchvision.safetensors"), dir.path().join("resnet18.safetensors"));
    renamed(&weights, &backbone, |n| match n {
        "roi_heads.box_head.fc6.bias" => Some("fc.bias".into()),
        _ => n.strip_prefix("backbone.body.").map(str::to_string),
    });
    let frozen = &["--set", "stage.pretrain.batch_norm=frozen", "--set", "stage.pretrain.frozen_stages=1"];
    let ran = start(&backbone, frozen).done();
    let note = "init.weights: a backbone of torchvision (a classifier): everything behind the backbone starts anew";
    assert!(ran.err.contains(note) || ran.out.contains(note), "{ran:?}");
    // Its own checkpoint works too; the heads are as initialised.
    let out = dir.path().join("c.safetensors");
    let ran = from(&backbone, "torchvision", "a,b", &out, &[]).done();
    assert!(ran.err.contains("note: a backbone of torchvision"), "{ran:?}");
    detections(&out, dir.path());

    start(&backbone, &["--set", "model.backbone.kind=resnet34"]).complains(&[
        "resnet18.safetensors",
        "another backbone",
        "layer1.2.conv1.weight is missing",
    ]);
    start(&weights, &["--set", "model.box_head.kind=shared_4conv_1fc"])
        .complains(&["torchvision.safetensors", "model.box_head.kind"]);
    start(&weights, &["--set", "model.fpn.channels=24", "--set", "model.rpn.channels=24"]).complains(&[
        "torchvision.safetensors",
        "another pyramid",
        "[16, ",
        "[24, ",
    ]);
    let pickle = dir.path().join("w.pth");
    fs::write(&pickle, b"PK\x03\x04 archive").unwrap();
    start(&pickle, &[]).complains(&["w.pth", "PyTorch", "tools/pth_to_safetensors.py"]);
}

/// With another number of classes, only the layers that tell classes apart are learnt anew.
#[test]
fn training_on_other_classes() {
    let data = folder_with_data();
    for split in ["train", "val"] {
        let path = data.path().join(format!("data/annotations/{split}.json"));
        let whole = fs::read_to_string(&path).unwrap();
        let more = whole.replacen("\"categories\":[", "\"categories\":[{\"id\":77,\"name\":\"moon\"},", 1);
        fs::write(&path, more).unwrap();
    }
    let recipe = write_recipe(data.path(), &data.path().join("data"));
    let weights = exported(data.path(), "mmdetection");
    let set = format!("init.weights={}", weights.display());
    let ran = train(&recipe, &data.path().join("run"), &["--set", &set, "--stop-after", "1"]).done();
    let note = "init.weights: its 6 classes are not the 7 here: their predictors are learnt anew";
    assert!(ran.err.contains(note) || ran.out.contains(note), "{ran:?}");
}

#[test]
fn bad_input() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let convert = |args: &[&str]| run_program("convert", args);
    let (good, out) = (last(finished_run()), path("out.safetensors"));
    let to = |input: &Path, program: &str| convert(&[text(input), "--to", program, text(&out)]);

    to(&path("none.safetensors"), "torchvision").complains(&["none.safetensors"]);
    let bytes = fs::read(&good).unwrap();
    fs::write(path("half.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    to(&path("half.safetensors"), "torchvision").complains(&["half.safetensors", "truncated"]);
    fs::write(path("w.pth"), b"PK\x03\x04 archive").unwrap();
    to(&path("w.pth"), "torchvision").complains(&["w.pth", "PyTorch", "pth_to_safetensors.py"]);
    let weights = exported(dir.path(), "torchvision");
    to(&weights, "mmdetection").complains(&["torchvision.safetensors", "no upres metadata", "convert --from"]);
    convert(&[text(&good), "--to", "mmdetection", text(&good)]).complains(&["last.safetensors", "is the input"]);
    let same = path("link.safetensors");
    fs::hard_link(&good, &same).unwrap();
    convert(&[text(&good), "--to", "mmdetection", text(&same)]).complains(&["link.safetensors", "is the input"]);
    assert_eq!(fs::read(&good).unwrap(), bytes);
    let nowhere = path("no/folder/out.safetensors");
    convert(&[text(&good), "--to", "mmdetection", text(&nowhere)]).complains(&[
        "OUTPUT",
        "out.safetensors",
        "no folder",
        "make it",
    ]);
    // An existing file is kept.
    fs::write(&out, "mine").unwrap();
    to(&good, "mmdetection").complains(&["out.safetensors exists already: name another file, or remove it"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "mine");
    fs::remove_file(&out).unwrap();

    // A detector that torchvision does not have.
    let recipe = write_recipe(dir.path(), shapes());
    let kind = ["--set", "model.box_head.kind=shared_4conv_1fc", "--stop-after", "1"];
    train(&recipe, &path("run"), &kind).done();
    to(&last(&path("run")), "torchvision").complains(&["last.safetensors", "model.box_head.kind", "shared_2fc"]);
    assert!(!out.exists(), "nothing is left behind");
    to(&last(&path("run")), "mmdetection").done();
    fs::remove_file(&out).unwrap();

    let all = classes().join(",");
    from(&weights, "torchvision", "a,b", &out, &[])
        .complains(&["torchvision.safetensors", "it has 6 classes, and 2 are named"]);
    from(&weights, "torchvision", "a,b,c,d,e,a", &out, &[]).complains(&["--classes", "\"a\" is named twice"]);
    // A missing file of class names is not taken for a class.
    for names in ["nmaes.txt", "no/names", "a,NAMES.JSON", "no\\names"] {
        from(&weights, "torchvision", names, &out, &[]).complains(&["--classes", "no such file", "one name a line"]);
    }
    from(&weights, "torchvision", "a/b,c.d,N/A,e f,g,h", &out, &[]).done();
    fs::remove_file(&out).unwrap();
    from(&weights, "torchvision", "-,-", &out, &[]).complains(&["--classes", "at least one"]);
    from(&weights, "mmdetection", &all, &out, &[]).complains(&["torchvision.safetensors", "not of mmdetection"]);
    from(&good, "mmdetection", &all, &out, &[]).complains(&["last.safetensors", "a checkpoint already"]);
    from(&weights, "torchvision", &all, &weights, &[]).complains(&["is the input"]);
    from(&weights, "torchvision", &all, &out, &["--set", "model.bakbone.kind=resnet18"]).complains(&["bakbone"]);
    from(&weights, "torchvision", &all, &out, &["--set", "model.backbone.kind=resnet34"]).complains(&[
        "torchvision.safetensors",
        "another backbone",
        "is missing",
    ]);
    assert!(!out.exists(), "nothing is left behind");

    for wrong in [
        &["in", "out"][..],
        &["in", "--to", "caffe", "out"],
        &["in", "--from", "torchvision", "out"],
        &["in", "--to", "torchvision", "--from", "torchvision", "out"],
        &["in", "--to", "torchvision", "--classes", "a", "out"],
    ] {
        assert_eq!(convert(wrong).code, Some(2), "{wrong:?}");
    }
}
