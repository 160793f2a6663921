//! Recipes as users meet them: the shipped files, overrides, and every complaint.

use upres::models::config::{BackboneKind, BoxHeadKind, ModelConfig};
use upres::recipe::keys::{KEYS, Need};
use upres::recipe::read::Override;
use upres::recipe::schedule::Schedule;
use upres::recipe::{NormMode, Recipe, Resize, ScheduleKind, StatePrecision};

const MINIMAL: &str = r#"
[data]
train = { annotations = "a.json", images = "i" }

[[stage]]
name = "one"
epochs = 2
images_per_step = 8
micro_batch = 4
resize = { kind = "fit_crop", size = 64 }
optimizer = { lr = 0.01 }

[[stage]]
name = "two"
steps = 10
images_per_step = 4
micro_batch = 4
resize = { kind = "keep_ratio", long = 128, short = 96 }
optimizer = { lr = 0.01 }
"#;

fn recipes() -> Vec<std::path::PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "toml"));
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    files
}

fn set(arguments: &[&str]) -> Vec<Override> {
    arguments.iter().map(|argument| argument.parse().unwrap()).collect()
}

fn parse(text: &str, arguments: &[&str]) -> Result<Recipe, String> {
    Recipe::parse(text, "r.toml", &set(arguments)).map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "one line: {text}");
        assert!(text.starts_with("r.toml: "), "names the file: {text}");
        text
    })
}

/// The error for `text` must contain all of `wanted`.
#[track_caller]
fn complains(text: &str, arguments: &[&str], wanted: &[&str]) {
    let got = parse(text, arguments).expect_err("must be refused");
    for part in wanted {
        assert!(got.contains(part), "want {part:?} in: {got}");
    }
}

#[test]
fn shipped_recipes_read_and_their_resolved_text_reads_the_same() {
    for path in recipes() {
        let recipe = Recipe::read(&path, &[]).unwrap();
        assert!(recipe.expect.is_some(), "{}: states what it must reach", path.display());
        assert!(recipe.notes().is_empty(), "{:?}", recipe.notes());
        let text = recipe.to_toml();
        let again = Recipe::parse(&text, "recipe.toml", &[]).unwrap();
        assert_eq!(again, recipe, "{}", path.display());
        assert_eq!(again.to_toml(), text);
        assert!(recipe.differences(&again).is_empty());
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/shapes.toml");
    assert_eq!(Recipe::built_in(&[]).unwrap(), Recipe::read(path, &[]).unwrap());
}

/// Numbers are written to the last bit and in as few digits as possible, whether stored in 32 bits (flip) or in 64
/// (lr).
#[test]
fn numbers_are_written_as_they_were_read() {
    for number in [
        "0.7",
        "0.1",
        "0.33",
        "0.123456789",
        "0.017320508075688773",
        "0.10000000149011612",
        "9.5367431640625e-7",
        "7.03853069e-26",
    ] {
        let text = MINIMAL.replacen("lr = 0.01", &format!("lr = {number}"), 1);
        let text = text.replacen("epochs = 2", &format!("epochs = 2\nflip = {number}"), 1);
        let recipe = Recipe::parse(&text, "r.toml", &[]).unwrap();
        let written = recipe.to_toml().parse::<toml::Table>().unwrap();
        let stage = &written["stage"][0];
        assert_eq!(stage["optimizer"]["lr"].as_float(), number.parse().ok());
        let flip = stage["flip"].as_float().unwrap();
        let stored = number.parse::<f64>().unwrap() as f32;
        assert_eq!(flip as f32, stored);
        // The last number of the list is rounded twice on its way to f32, as decimal and as f64; such a number keeps
        // its digits.
        let short: f64 = stored.to_string().parse().unwrap();
        assert!(flip == short || short as f32 != stored, "{number}: {flip}");
        assert_eq!(Recipe::parse(&recipe.to_toml(), "r.toml", &[]).unwrap(), recipe);
    }
}

/// The recipe that a run writes, and that its checkpoints hold, states every number: no default of a later version can
/// change it. A shipped recipe may leave out what has its default, so that a new key changes no recipe.
#[test]
fn the_recipe_of_a_run_shows_every_number() {
    for path in recipes() {
        let resolved = Recipe::read(&path, &[]).unwrap().to_toml().parse::<toml::Table>().unwrap();
        let mut missing = Vec::new();
        for key in KEYS.iter().filter(|key| key.need == Need::Default && key.only.is_none()) {
            let parts: Vec<&str> = key.path.split('.').collect();
            missing.extend((!is_in(&toml::Value::Table(resolved.clone()), &parts)).then_some(key.path));
        }
        assert!(missing.is_empty(), "{}: not in recipe.toml: {missing:?}", path.display());
    }
}

/// Whether a key is in a recipe, in every stage if it is one of stages; or its table is not, which the detector does
/// not use.
fn is_in(value: &toml::Value, path: &[&str]) -> bool {
    match path {
        [] => true,
        ["*", rest @ ..] => value.as_array().is_some_and(|stages| stages.iter().all(|stage| is_in(stage, rest))),
        [table, rest @ ..] => match value.get(table) {
            Some(inner) => is_in(inner, rest),
            None => !rest.is_empty(),
        },
    }
}

#[test]
fn the_paper_is_in_its_recipe() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/faster_rcnn_r50_fpn.toml");
    let recipe = Recipe::read(path, &[]).unwrap();
    assert_eq!(recipe.model, ModelConfig::default(), "the defaults are the paper's");
    assert_eq!(recipe.model.backbone.kind, BackboneKind::Resnet50);
    assert_eq!(recipe.model.box_head.kind, BoxHeadKind::Shared4Conv1Fc);
    let [pretrain, finetune] = &recipe.stages[..] else { panic!("two stages") };
    assert_eq!(pretrain.resize, Resize::FitCrop { size: 448, jitter: [0.8, 1.2] });
    assert_eq!((pretrain.repeat, pretrain.epochs, pretrain.images_per_step), (4, Some(12), 64));
    assert_eq!((pretrain.batch_norm, pretrain.frozen_stages), (NormMode::Train, -1));
    assert!(!pretrain.optimizer.norm_decay && pretrain.optimizer.bias_decay);
    assert_eq!(pretrain.accumulate(), 8);
    assert_eq!(finetune.resize, Resize::KeepRatio { long: 1333, short: 800, pad_to: 32, buckets: 4 });
    assert_eq!((finetune.batch_norm, finetune.frozen_stages), (NormMode::Frozen, 1));
    assert_eq!(finetune.schedule.kind, ScheduleKind::Step);
    let schedule = Schedule::new(finetune, 7330);
    assert!((schedule.lr(0) - 2e-5).abs() < 1e-15 && schedule.lr(500) == 0.02);
    assert!((schedule.lr(11 * 7330) - 2e-4).abs() < 1e-15);
}

#[test]
fn defaults_fill_what_is_left_out() {
    let recipe = parse(MINIMAL, &[]).unwrap();
    assert_eq!(recipe.name, "r", "from the file");
    assert_eq!(recipe.model, ModelConfig::default());
    assert_eq!(recipe.stages[0].resize, Resize::FitCrop { size: 64, jitter: [0.8, 1.2] });
    assert_eq!(recipe.stages[0].eval_resize(), Resize::FitCrop { size: 64, jitter: [1.0, 1.0] });
    assert_eq!(recipe.stages[1].eval_resize(), recipe.stages[1].resize);
    assert_eq!(recipe.stages[0].optimizer.lr_batch, 8, "the rate is stated for the file's batch");
}

#[test]
fn overrides() {
    let arguments = [
        "stage.0.epochs=7",
        "stage.two.epochs=3",
        "stage.one.images_per_step=32",
        "model.rpn.anchor_scales=[4.0, 8.0]",
        "data.train.images=some/where",
        "data.val={ annotations = \"v.json\", images = \"7\" }",
        "name=2026",
        "init.weights=w.safetensors",
        "seed=11",
        "stage.one.schedule.warmup_steps = 3",
    ];
    let recipe = parse(MINIMAL, &arguments).unwrap();
    assert_eq!(recipe.stages[0].epochs, Some(7));
    assert_eq!((recipe.stages[1].epochs, recipe.stages[1].steps), (Some(3), None), "one length replaces the other");
    assert_eq!(recipe.model.rpn.anchor_scales, [4.0, 8.0]);
    assert_eq!(recipe.data.train.as_ref().unwrap().images, std::path::Path::new("some/where"));
    assert_eq!(recipe.data.val.as_ref().unwrap().images, std::path::Path::new("7"));
    assert_eq!(recipe.name, "2026", "text where the key takes text");
    assert_eq!(recipe.stages[0].schedule.warmup_steps, 3);
    assert_eq!(recipe.seed, 11);

    assert_eq!(recipe.stages[0].effective_lr(), 0.04);
    let sentence = "one: learning rate 0.01 is stated for steps of 8 images; scaled to 0.04 for steps of 32";
    assert!(recipe.notes().iter().any(|note| note == sentence), "{:?}", recipe.notes());
    let removed = parse(MINIMAL, &["init.weights=w.safetensors", "init.weights="]).unwrap();
    assert_eq!(removed.init.weights, None);
    let shapes = Recipe::built_in(&set(&["data.built_in=", "data.shapes=", "expect="])).unwrap();
    assert!(shapes.data.built_in.is_none() && shapes.data.shapes.is_none(), "tables go too");
    assert_eq!(shapes.expect, None);
    // Any optional key may be removed, present or not. A required or an unknown key may not.
    let nothing = [
        "init=",
        "init.weights=",
        "data.shapes=",
        "data.shapes.folder=",
        "data.test=",
        "data.test.images=",
        "model.mask_head=",
        "model.mask_head.pool=",
        "model.rpn.nms_iou=",
        "stage.two.eval_resize=",
        "stage.two.eval_resize.size=",
        "stage.1.schedule=",
        "stage.one.steps=",
        "expect=",
        "expect.bbox_ap=",
        "seed=",
        "name=",
    ];
    assert_eq!(parse(MINIMAL, &nothing).unwrap(), parse(MINIMAL, &[]).unwrap());
    assert_eq!(parse(MINIMAL, &["seed=3", "seed=", "stage.one.flip=0.1", "stage.one.flip="]).unwrap().seed, 0);
    complains(MINIMAL, &["inti="], &["inti", "unknown key", "init"]);
    complains(MINIMAL, &["init.wieghts="], &["init.wieghts", "unknown key", "init.weights"]);
    complains(MINIMAL, &["model.mask_head.poool="], &["poool", "unknown key"]);
    complains(MINIMAL, &["stage.one.name="], &["stage.one.name", "--set stage.one.name=", "cannot be left out"]);
    complains(MINIMAL, &["data.train.images="], &["data.train.images", "cannot be left out"]);
    complains(MINIMAL, &["data.train="], &["data.train"]);
    complains(MINIMAL, &["stage="], &["stage"]);
    complains(MINIMAL, &["stage.one="], &["cannot set a whole stage"]);

    let plain = parse(MINIMAL, &[]).unwrap();
    let seed = parse(MINIMAL, &["seed=11", "stage.two.flip=0.25"]).unwrap();
    assert_eq!(seed.differences(&plain), ["seed: 11, was 0", "stage.two.flip: 0.25, was 0.5"]);

    complains(MINIMAL, &["stage.0.epoch=7"], &["stage.one.epoch", "--set stage.0.epoch=7", "stage.one.epochs"]);
    complains(MINIMAL, &["stage.three.epochs=7"], &["stage.three.epochs", "no stage \"three\"", "one, two"]);
    complains(MINIMAL, &["stage.2.epochs=7"], &["no stage \"2\""]);
    complains(MINIMAL, &["stage.0=7"], &["cannot set a whole stage"]);
    complains(MINIMAL, &["seed.x=7"], &["seed", "want a whole number"]);
    complains(MINIMAL, &["stage.one.flip=often"], &["stage.one.flip", "--set stage.one.flip=often", "\"often\""]);
    complains(MINIMAL, &["model..x=7"], &["no empty parts"]);
    assert!("stage.0.epochs".parse::<Override>().unwrap_err().contains("key=value"));
    assert!("=3".parse::<Override>().is_err());
}

/// The text of a resolved recipe has no optimizer key that the optimizer does not use, because it could not be read
/// again.
#[test]
fn optimizers_have_their_own_keys() {
    let kind = "stage.one.optimizer.kind=adamw";
    let recipe = parse(MINIMAL, &[kind, "stage.one.optimizer.betas=[0.8, 0.95]"]).unwrap();
    assert_eq!((recipe.stages[0].optimizer.betas, recipe.stages[1].optimizer.momentum), ([0.8, 0.95], 0.9));
    let text = recipe.to_toml();
    assert_eq!(parse(&text, &[]).unwrap(), recipe, "{text}");
    let again = parse(&text, &["stage.0.optimizer.kind=sgd", "stage.1.resize.kind=fit_crop", "stage.1.resize.size=64"]);
    assert_eq!(again.unwrap().stages[0].optimizer.momentum, 0.9, "another kind takes the keys of its own");
    complains(MINIMAL, &[kind, "stage.one.optimizer.nesterov=true"], &["stage.one.optimizer.nesterov", "sgd", "adamw"]);
    complains(MINIMAL, &["stage.one.optimizer.kind=adam"], &["adam", "adamw"]);
    complains(MINIMAL, &[kind, "stage.one.optimizer.betas=[0.9, 1.0]"], &["stage.one.optimizer.betas"]);
    // Both have this one.
    assert_eq!(recipe.stages.iter().map(|s| s.optimizer.state).collect::<Vec<_>>(), [StatePrecision::F32; 2]);
    for (word, state) in [("bf16", StatePrecision::Bf16), ("auto", StatePrecision::Auto)] {
        let set = [kind, &format!("stage.one.optimizer.state={word}"), &format!("stage.two.optimizer.state={word}")];
        let recipe = parse(MINIMAL, &set).unwrap();
        assert!(recipe.stages.iter().all(|s| s.optimizer.state == state));
        assert_eq!(parse(&recipe.to_toml(), &[]).unwrap(), recipe);
    }
    let want = ["stage.one.optimizer.state", "\"f32\", \"bf16\", \"auto\"", "f16"];
    complains(MINIMAL, &["stage.one.optimizer.state=f16"], &want);
    complains(MINIMAL, &["stage.one.optimizer.state=16"], &want[..2]);
}

#[test]
fn unknown_keys_name_the_nearest() {
    let cases = [
        ("sed = 1\n", "sed", "line 1", "seed"),
        ("[model]\ndetectr = \"x\"\n", "model.detectr", "line 2", "model.detector"),
        ("[model.rpn]\npos_iuo = 0.5\n", "model.rpn.pos_iuo", "line 2", "model.rpn.pos_iou"),
        ("[model]\nrpn = { stds = [1, 1, 1, 1], nms_thr = 0.7 }\n", "model.rpn.nms_thr", "line 2", "model.rpn."),
        ("[modell]\nx = 1\n", "modell", "line 1", "model"),
        ("[dta.train]\nimages = \"x\"\n", "dta", "line 1", "data"),
        ("[data.trian]\nimages = \"x\"\n", "data.trian", "line 1", "data.train"),
    ];
    for (text, key, line, nearest) in cases {
        complains(&format!("{text}{MINIMAL}"), &[], &[&format!("r.toml: {key}: {line}: unknown key"), nearest]);
    }
    let stage = MINIMAL.replace("steps = 10", "steps = 10\nlr = 0.1");
    complains(&stage, &[], &["stage.two.lr: line 16: unknown key", "stage.two.optimizer.lr"]);
    let deep = MINIMAL.replace("{ lr = 0.01 }", "{ lr = 0.01, momentun = 0.9 }");
    complains(&deep, &[], &["stage.one.optimizer.momentun: line 11: ", "stage.one.optimizer.momentum"]);
    let eval = MINIMAL.replace("steps = 10", "steps = 10\neval_resize = { kind = \"fit_crop\", siez = 3 }");
    complains(&eval, &[], &["stage.two.eval_resize.siez", "resize.size"]);
    let other = MINIMAL.replace("size = 64", "size = 64, long = 3");
    complains(&other, &[], &["stage.one.resize.long", "kind = \"keep_ratio\"", "kind = \"fit_crop\""]);
}

#[test]
fn wrong_types_and_ranges_name_key_line_and_both_sides() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("epochs = 2", "epochs = \"two\"", &["stage.one.epochs: line 7", "a whole number", "\"two\" (a text)"]),
        ("epochs = 2", "epochs = 2.5", &["stage.one.epochs", "a whole number", "2.5 (a number)"]),
        ("epochs = 2", "epochs = 0", &["stage.one.epochs", "at least 1", "found 0"]),
        (
            "epochs = 2",
            "epochs = 5000000000",
            &["stage.one.epochs", "found 5000000000", "a whole number); at most 4294967295 is possible"],
        ),
        ("epochs = 2", "epochs = 2\nflip = 2", &["stage.one.flip: line 8", "from 0 to 1"]),
        ("epochs = 2", "epochs = 2\nflip = nan", &["stage.one.flip", "nan"]),
        (
            "epochs = 2",
            "epochs = 2\nbatch_norm = \"trian\"",
            &["one of \"train\", \"eval\", \"frozen\"", "did you mean \"train\"?"],
        ),
        ("epochs = 2", "epochs = 2\nprecision = \"f64\"", &["stage.one.precision", "\"bf16\""]),
        ("epochs = 2", "epochs = 2\nschedule = 3", &["stage.one.schedule", "want a table [stage.one.schedule]"]),
        ("epochs = 2", "epochs = 2\neval_resize = 3", &["stage.one.eval_resize", "want a table"]),
        ("lr = 0.01", "lr = 0", &["stage.one.optimizer.lr", "more than 0"]),
        ("lr = 0.01", "lr = inf", &["stage.one.optimizer.lr", "inf"]),
        ("lr = 0.01", "lr = 1e-60", &["stage.one.optimizer.lr", "from 1e-45 to 3.4e38"]),
        ("epochs = 2", "epochs = 2\nclip_grad_norm = 1e39", &["stage.one.clip_grad_norm", "from 1e-45 to 3.4e38"]),
        ("[data]", "[data]\nstd = [57, 57, 1e39]", &["data.std", "from 1e-45 to 3.4e38"]),
        ("[data]", "[model.rpn]\nstds = [1, 2, 3]\n[data]", &["model.rpn.stds: line 3", "a list of 4 numbers"]),
        ("[data]", "[model.rpn]\nstds = [1, 2, 3, \"4\"]\n[data]", &["model.rpn.stds"]),
        ("[data]", "[model.rpn]\nanchor_scales = []\n[data]", &["model.rpn.anchor_scales", "at least one"]),
        ("[data]", "[model.rpn]\nstrides = [4.5]\n[data]", &["model.rpn.strides", "whole number"]),
        (
            "[data]",
            "[model.rpn]\nstrides = [4, 5000]\n[data]",
            &["model.rpn.strides", "from 1 to 1024, found [4, 5000] (a list)"],
        ),
        ("[data]", "[data]\nkeep_empty = 1", &["data.keep_empty", "true or false"]),
        ("\"a.json\"", "\"\"", &["data.train.annotations", "a path in quotes"]),
        ("size = 64", "size = 8", &["stage.one.resize.size", "from 32 to 8192"]),
    ];
    for (from, to, wanted) in cases {
        complains(&MINIMAL.replacen(from, to, 1), &[], wanted);
    }
    let strides = MINIMAL.replacen("[data]", "[model.rpn]\nstrides = [4, 5000]\n[data]", 1);
    assert!(parse(&strides, &[]).unwrap_err().ends_with("(a list)"), "a limit is said once");
    complains("stage = 3", &[], &["stage: line 1", "[[stage]] tables"]);
    complains("stage = [3]", &[], &["stage.0: line 1", "a [[stage]] table"]);
    complains("a = = 3", &[], &["line 1: not TOML"]);
    complains("[data]\n[data]", &[], &["line 2: not TOML", "duplicate"]);
}

#[test]
fn missing_keys_are_named() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("name = \"one\"\n", "", &["stage.0.name", "missing"]),
        ("images_per_step = 8\n", "", &["stage.one.images_per_step: line 5", "missing"]),
        ("optimizer = { lr = 0.01 }", "", &["stage.one.optimizer.lr", "missing"]),
        ("resize = { kind = \"fit_crop\", size = 64 }", "", &["stage.one.resize.kind", "missing"]),
        (", size = 64", "", &["stage.one.resize.size: line 10", "missing", "side of the square"]),
        (", short = 96", "", &["stage.two.resize.short", "missing"]),
        ("epochs = 2\n", "", &["stage.one.epochs", "missing: give epochs or steps"]),
        ("epochs = 2\n", "epochs = 2\nsteps = 2\n", &["stage.one.epochs", "not both"]),
        (", images = \"i\"", "", &["data.train.images", "missing"]),
        ("train = { annotations = \"a.json\", images = \"i\" }", "", &["data.train", "stage \"one\" has no data"]),
    ];
    for (from, to, wanted) in cases {
        complains(&MINIMAL.replacen(from, to, 1), &[], wanted);
    }
    complains("[data]\ntrain = { annotations = \"a\", images = \"i\" }", &[], &["stage: missing", "[[stage]]"]);
    let error = Recipe::read("no/such/recipe.toml", &[]).unwrap_err().to_string();
    assert!(error.starts_with("no/such/recipe.toml: ") && error.contains("no such file"), "{error}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    complains(MINIMAL, &["stage.one.batch_norm=frozen"], &["stage.one.batch_norm", "from scratch", "init.weights"]);
    complains(
        MINIMAL,
        &["stage.one.batch_norm=eval"],
        &["stage.one.batch_norm", "\"eval\"", "from scratch", "init.weights"],
    );
    complains(MINIMAL, &["stage.one.frozen_stages=0"], &["stage.one.frozen_stages", "from scratch", "init.weights"]);
    let loaded = ["init.weights=w", "stage.one.batch_norm=frozen", "stage.one.frozen_stages=1"];
    parse(MINIMAL, &loaded).expect("with weights it may freeze");
    parse(MINIMAL, &["stage.two.batch_norm=frozen", "stage.two.frozen_stages=4"])
        .expect("an earlier stage gives weights");
    complains(MINIMAL, &["stage.one.micro_batch=3"], &["stage.one.micro_batch", "3 does not divide", "= 8: 2 would"]);
    complains(MINIMAL, &["stage.one.micro_batch=16"], &["16 does not divide", "8 would"]);
    complains(MINIMAL, &["stage.two.name=one"], &["stage.1.name", "\"one\" names two stages"]);
    complains(MINIMAL, &["stage.two.name=7"], &["stage.1.name", "not only digits"]);
    complains(MINIMAL, &["name=../x"], &["name", "file name"]);
    complains(MINIMAL, &["stage.two.resize.short=256"], &["stage.two.resize.short", "above long = 128"]);
    complains(MINIMAL, &["stage.one.resize.jitter=[1.2,0.8]"], &["stage.one.resize.jitter", "[low, high]"]);
    complains(MINIMAL, &["stage.one.schedule.kind=step"], &["stage.one.schedule.drop_epochs", "missing"]);
    complains(MINIMAL, &["stage.one.schedule.drop_epochs=[1]"], &["stage.one.schedule.drop_epochs", "kind = \"step\""]);
    let falling = ["stage.one.schedule={ kind = \"step\", drop_epochs = [3, 2] }"];
    complains(MINIMAL, &falling, &["stage.one.schedule.drop_epochs", "rising"]);
    complains(MINIMAL, &["model.rpn.neg_iou=0.8"], &["model.rpn.neg_iou", "pos_iou = 0.7"]);
    complains(MINIMAL, &["model.fpn.levels=4"], &["model.rpn.strides", "[4, 8, 16, 32]"]);
    complains(MINIMAL, &["data.shapes.seed=1"], &["data.shapes", "data.built_in"]);
    complains(MINIMAL, &["expect={ bbox_ap = 39.3, window = 0.5 }"], &["data.val", "expect.split"]);
    let fraction = ["data.val={ annotations = \"v\", images = \"i\" }", "expect={ bbox_ap = 0.393, window = 0.5 }"];
    complains(MINIMAL, &fraction, &["expect.bbox_ap", "per cent"]);
}

#[test]
fn expectations_are_judged_in_per_cent() {
    let val =
        ["data.val={ annotations = \"v\", images = \"i\" }", "expect={ bbox_ap = 39.3, bbox_ap50 = 60, window = 0.5 }"];
    let expect = parse(MINIMAL, &val).unwrap().expect.unwrap();
    let found = |ap, ap50| [("bbox_ap".to_string(), ap), ("bbox_ap50".to_string(), ap50)].into();
    assert!(expect.shortfalls(&found(0.389, 0.596)).is_empty());
    assert_eq!(expect.shortfalls(&found(0.387, 0.7)), ["bbox_ap: 38.7, expected 39.3 (window 0.5)"]);
    assert_eq!(expect.shortfalls(&found(f64::NAN, 0.0)).len(), 2);
}

#[test]
fn the_defaults_are_those_of_the_detector() {
    let cascade = parse(MINIMAL, &["model.detector=cascade_rcnn"]).unwrap();
    assert_eq!((cascade.model.rpn.train_max, cascade.model.box_head.class_agnostic), (2000, true));
    let retina = parse(MINIMAL, &["model.detector=retinanet"]).unwrap();
    assert_eq!((retina.model.fpn.start, retina.model.fpn.strides()), (3, vec![8, 16, 32, 64, 128]));
    let text = retina.to_toml();
    assert!(text.contains("[model.retina_head]") && !text.contains("[model.rpn]"), "{text}");
    let swin = parse(MINIMAL, &["model.backbone.kind=swin_t"]).unwrap();
    let text = swin.to_toml();
    assert!(text.contains("drop_path = 0.2") && !text.contains("norm_momentum"), "{text}");
}

#[test]
fn tables_of_other_detectors_are_refused() {
    complains(
        MINIMAL,
        &["model.mask_head.pool=7"],
        &["model.mask_head", "belongs to mask_rcnn", "model.detector = \"faster_rcnn\""],
    );
    complains(
        MINIMAL,
        &["model.detector=retinanet", "model.fpn.start=2"],
        &["model.retina_head.strides", "[4, 8, 16, 32, 64]"],
    );
    complains(MINIMAL, &["model.fpn.levels=3"], &["model.rpn.strides"]);
    complains(MINIMAL, &["model.backbone.kind=swin_t", "model.backbone.norm_eps=0"], &["norm_eps", "resnet"]);
}
