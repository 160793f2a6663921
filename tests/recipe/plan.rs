//! `train --plan` before any training: true to the byte, and enough to choose a batch size for a GPU.

use std::fs;
use std::path::Path;

use crate::support::programs::*;
use crate::support::small::PIXELS;
use serde_json::Value;
use upres::data::Shape;
use upres::device::{Device, LiveAtPeak, Target};
use upres::engine::feed::pixel_stats;
use upres::engine::{Engine, StageSetup};
use upres::models::Sampling;
use upres::plan::rates::Rates;
use upres::plan::report::{LiveKind, PlanReport, StepKind};
use upres::plan::{Planner, StagePlans};
use upres::recipe::{OptimizerKind, Recipe, StatePrecision};
use upres::run::dir::RunDir;
use upres::tensor::DType;

/// `train RECIPE --plan …`
fn plan(recipe: &Path, more: &[&str]) -> String {
    let args = [recipe.as_os_str(), "--plan".as_ref()].into_iter().chain(more.iter().map(|s| s.as_ref()));
    let ran = run("train", args).done();
    assert_eq!(ran.err, "");
    ran.out
}

fn report(file: &Path, target: Target) -> PlanReport {
    let recipe = Recipe::read(file, &[]).unwrap();
    let mut planner = Planner::new(&recipe, file, &Device::plan_for(target)).unwrap();
    PlanReport::new(&mut planner, &recipe, None, &Rates::default()).unwrap()
}

#[test]
fn the_document_is_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_recipe(dir.path(), shapes());
    assert_eq!(plan(&file, &["--json"]), report(&file, Target::Cpu).to_json() + "\n");
    assert_eq!(plan(&file, &[]), format!("{}\n", report(&file, Target::Cpu)));
    let all: Value = serde_json::from_str(&plan(&file, &["--json", "--device", "cuda"])).unwrap();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&all), ["budget_bytes", "data", "device", "needed_bytes", "notes", "recipe", "stages"]);
    assert_eq!((&all["recipe"], &all["device"]), (&"tiny".into(), &"cuda".into()));
    let stage = &all["stages"][0];
    assert_eq!((&stage["steps"], &stage["passes_per_step"]), (&120.into(), &2.into()));
    let of_batch = ["precision", "batch_norm", "batch_norm_images"].map(|key| stage[key].to_string());
    assert_eq!(of_batch, ["\"bf16\"", "\"train\"", "2"]);
    assert_eq!(all["stages"][1]["batch_norm_images"], Value::Null, "running statistics");
    let step = &stage["plans"][0];
    assert_eq!((&step["step"], &step["images"], &step["height"]), (&"train".into(), &2.into(), &64.into()));
    assert_eq!(keys(&step["live"][0]), ["buffers", "bytes", "kind", "module"]);
}

/// A stage reserves what its report says: nothing else lives between steps, and no step needs more.
#[test]
fn a_stage_takes_what_its_report_says() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_recipe(dir.path(), shapes());
    let (recipe, report) = (Recipe::read(&file, &[]).unwrap(), report(&file, Target::Cpu));
    let mut planner = Planner::new(&recipe, &file, &Device::plan()).unwrap();
    let classes = planner.data.train.dataset().categories.len();
    for (index, said) in report.stages.iter().enumerate() {
        let (context, plans) = planner.stage(&recipe, index).unwrap();
        assert_eq!(usize::from(context.setup.index), index);
        let device = Device::cpu();
        let mut engine = Engine::new(&device, &recipe.model, classes, pixel_stats(&recipe.data), 0).unwrap();
        engine.enter_stage(&context.setup).unwrap();
        for (bucket, plan) in plans.train.iter().enumerate() {
            engine.train_pass(Some(plan), bucket, 1.0, true, Sampling::Random).unwrap();
        }
        engine.update(Some(&plans.update), 0.0, 1).unwrap();
        for (bucket, plan) in plans.eval.iter().enumerate() {
            engine.eval_pass(Some(plan), bucket).unwrap();
        }
        assert_eq!(said.total_bytes, device.persistent_bytes() + device.arena_high_water());
        assert_eq!(said.persistent_bytes, device.persistent_bytes());
        assert_eq!(said.persistent, engine.persistent_parts(), "a device that computes keeps the same");
    }
    assert_eq!(report.needed_bytes, report.stages.iter().map(|s| s.total_bytes).max().unwrap());
}

/// Plans for the CPU and for a GPU, which has other workspaces.
#[test]
fn what_lives_at_the_peak_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_recipe(dir.path(), shapes());
    for target in [Target::Cpu, Target::Cuda] {
        for stage in report(&file, target).stages {
            assert_eq!(stage.persistent.total(), stage.persistent_bytes);
            assert_eq!(stage.total_bytes, stage.persistent_bytes + stage.arena_bytes);
            assert_eq!(Some(stage.arena_bytes), stage.plans.iter().map(|p| p.peak_bytes).max());
            for kind in [StepKind::Train, StepKind::Eval, StepKind::Update] {
                assert!(stage.plans.iter().any(|p| p.step == kind), "{kind:?}");
            }
            for p in &stage.plans {
                assert_eq!(p.live.iter().map(|g| g.bytes).sum::<usize>(), p.lower_bound_bytes, "{p:?}");
                assert!(p.lower_bound_bytes <= p.peak_bytes && p.live.is_sorted_by(|a, b| a.bytes >= b.bytes));
                let gradients = p.live.iter().any(|g| g.kind == LiveKind::Gradients);
                assert!(!gradients || p.step == StepKind::Train, "{p:?}");
            }
        }
    }
}

/// Every shipped recipe at any input size: saved activations are accounted for to the byte, and everything that lives
/// at the peak belongs to modules.
#[test]
fn every_recipe_is_accounted_for() {
    let folder = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes")).unwrap();
    for file in folder.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "toml")) {
        let recipe = Recipe::read(&file, &[]).unwrap();
        let mut engine = Engine::new(&Device::plan(), &recipe.model, 6, PIXELS, 0).unwrap();
        for stage in &recipe.stages {
            let shapes = vec![Shape { height: 256, width: 256 }, Shape { height: 256, width: 320 }];
            let mask_runs = if recipe.model.mask_size().is_some() { 1024 } else { 0 };
            let setup = StageSetup { mask_runs, ..StageSetup::new(stage, shapes.clone(), shapes, 8) };
            let plans = StagePlans::trace(&mut engine, &setup).unwrap();
            let (parts, what) = (plans.persistent, format!("{}, {}", recipe.name, stage.name));
            assert_eq!(parts.total(), plans.persistent_bytes, "{what}: {parts:?}");
            let states = if stage.optimizer.kind == OptimizerKind::Sgd { 1 } else { 2 };
            assert_eq!(parts.optimizer_state, states * parts.gradients, "{what}");
            let mut half = StageSetup { train: Vec::new(), eval: Vec::new(), ..setup.clone() };
            half.optimizer.state = StatePrecision::Bf16;
            let half = StagePlans::trace(&mut engine, &half).unwrap();
            assert_eq!(half.persistent.total(), half.persistent_bytes, "{what}: {:?}", half.persistent);
            let rounded_up = 64 * states * engine.store.trainable().count(); // where a tensor may begin
            assert!(2 * half.persistent.optimizer_state - parts.optimizer_state <= rounded_up, "{what}");
            assert!(parts.parameters > 0 && parts.inputs > 0 && parts.anchors > 0 && parts.outputs > 0, "{what}");
            assert_eq!(parts.running_average > 0, stage.ema > 0.0, "{what}");
            for plan in plans.train.iter().chain(&plans.eval) {
                let known = ["backbone/", "neck", "rpn", "box_head", "mask_head", "retina_head"];
                let is_stray = |row: &LiveAtPeak| {
                    &*row.scope != "image_normalize" && !known.iter().any(|k| row.module.starts_with(k))
                };
                let bytes: usize = plan.live_at_peak().into_iter().filter(is_stray).map(|row| row.bytes).sum();
                assert!(20 * bytes <= plan.lower_bound_bytes(), "{what}: {bytes} bytes of no module");
            }
        }
    }
}

/// The largest map of a ResNet, the output of its first convolution: pooling keeps no copy, and the ReLU needs none.
#[test]
fn a_stem_keeps_one_map() {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/faster_rcnn_r50_fpn.toml"));
    let recipe = Recipe::read(file, &[]).unwrap();
    let mut engine = Engine::new(&Device::plan(), &recipe.model, 6, PIXELS, 0).unwrap();
    let setup = StageSetup::new(&recipe.stages[0], vec![Shape { height: 256, width: 320 }], Vec::new(), 8);
    let setup = StageSetup { dtype: DType::F32, ..setup };
    let plans = StagePlans::trace(&mut engine, &setup).unwrap();
    let map = setup.micro_batch * 128 * 160 * 64 * setup.dtype.bytes();
    let rows = plans.train[0].live_at_peak();
    let maps: Vec<_> =
        rows.iter().filter(|r| &*r.module == "backbone/stem" && !r.workspace && r.bytes >= map).collect();
    assert!(maps.len() == 1 && maps[0].bytes < 2 * map && maps[0].scope.ends_with("conv2d"), "{maps:?}");
}

#[test]
fn the_text_says_what_decides() {
    let dir = folder_with_data();
    let data = dir.path().join("data");
    // One picture has more objects than any other.
    let annotations = data.join("annotations/train.json");
    let mut truth: Value = serde_json::from_slice(&fs::read(&annotations).unwrap()).unwrap();
    let crowded = truth["images"][7].clone();
    let mut another = truth["annotations"][0].clone();
    another["image_id"] = crowded["id"].clone();
    for id in 0..20 {
        another["id"] = (1_000_000 + id).into();
        truth["annotations"].as_array_mut().unwrap().push(another.clone());
    }
    let objects = truth["annotations"].as_array().unwrap().iter().filter(|a| a["image_id"] == crowded["id"]).count();
    fs::write(&annotations, truth.to_string()).unwrap();
    let file = write_recipe(dir.path(), &data);
    let text = plan(&file, &[]);
    let name = crowded["file_name"].as_str().unwrap();
    for words in [
        &format!("up to {objects} objects in an image ({name}), room for 24") as &str,
        "largest input 96x96 (stage finetune)",
        "stage pretrain: 120 steps of 4 images, in 2 passes of 2 each; f32; \
         batch norm: statistics of the 2 images of a pass, not of the 4 of a step",
        "stage finetune: 80 steps of 2 images, in one pass each; f32; batch norm: running statistics, nothing trained",
        "running average",
        "train step, 2 x 64x64 pixels",
        "eval step, 2 x 96x96 pixels",
        "activations backbone/layer1",
        "workspace ",
    ] {
        assert!(text.contains(words), "want {words:?} in\n{text}");
    }
    let said: Value = serde_json::from_str(&plan(&file, &["--json"])).unwrap();
    assert_eq!((&said["data"]["max_objects"], &said["data"]["max_objects_image"]), (&objects.into(), &name.into()));
    assert_eq!(said["stages"][0]["state_precision"], "f32");
    let half = plan(&file, &["--set", "stage.0.optimizer.state=bf16"]);
    assert!(half.contains(" of 2 each; f32; optimizer state in bf16; batch norm: "), "{half}");
    let last = format!("in all ({} bytes), in stage pretrain", said["needed_bytes"]);
    assert!(text.lines().last().unwrap().ends_with(&last), "{last}: {text}");
    assert!(!text.contains("cuDNN"));
    let gpu = plan(&file, &["--device", "cuda"]);
    assert!(gpu.contains("planned for cuda") && gpu.contains("cuDNN") && gpu.contains("driver's context"), "{gpu}");
}

/// The rates come from a run beside `--out` that did the same work. The other stage was not trained before.
#[test]
fn a_measured_rate_gives_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_recipe(dir.path(), shapes());
    let recipe = Recipe::read(&file, &["threads=1".parse().unwrap()]).unwrap();
    let (before, next) = (dir.path().join("runs/before"), dir.path().join("runs/next"));
    let run = RunDir::create(Some(&before), &recipe).unwrap();
    let start = r#"{"event":"start","version":"0","recipe":"tiny","seed":0,"device":"cpu","threads":1,"classes":[],"parameters":1,"resumed_at":null,"recipe_crc32c":CRC}"#;
    let start = start.replace("CRC", &recipe.crc32c().to_string());
    let step = r#"{"event":"train","stage":"pretrain","stage_index":0,"step":1,"global_step":1,"epoch":0.1,"lr":0.1,"losses":{},"grad_norm":1.0,"images_per_s":8.0,"data_wait":0.0,"time_s":1.0,"memory_bytes":1}"#;
    fs::write(run.log(), [&[&*start], &[step; 20][..]].concat().join("\n")).unwrap();
    let asked = |more: &[&str]| {
        let out = ["--set", "threads=1", "--out", next.to_str().unwrap()];
        plan(&file, &[&out, more].concat())
    };
    let text = asked(&[]);
    let line = format!(
        "its training steps take about 1m00s, at 8 images/s as in {} (cpu, threads: 1); evaluations come on top",
        before.display()
    );
    assert!(text.contains(&line), "want {line} in\n{text}");
    assert_eq!(text.matches("training steps take").count(), 1, "{text}");
    let said: Value = serde_json::from_str(&asked(&["--json"])).unwrap();
    let expected = &said["stages"][0]["expected"];
    assert_eq!((&expected["training_s"], &expected["images_per_s"]), (&60.0.into(), &8.0.into()));
    assert_eq!(said["stages"][1]["expected"], Value::Null);
    assert!(!next.exists(), "a plan makes no folder");
    assert!(!asked(&["--device", "cuda"]).contains("training steps take"), "not of a CPU's speed");
}

#[test]
fn a_document_without_a_plan_is_wrong_usage() {
    let ran = run("train", ["--json"]);
    assert!(ran.code == Some(2) && ran.err.contains("--plan"), "{ran:?}");
}
