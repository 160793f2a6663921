//! One training step of a detector of the paper beside benches/peers/step_{torchvision,mmdetection}.py: forward,
//! backward, update.
//!
//! `cargo bench --bench step -- [--detector faster|cascade|mask|retinanet|mask_swin] [--head 2fc|4conv1fc] [--images 2]
//! [--height 448] [--width 448] [--objects 8] [--steps 5] [--threads 2] [--device cpu|cuda|sim] [--precision
//! auto|f32|f16|bf16] [--recompute norms|blocks] [--json FILE]`. The model and the optimizer are those of
//! recipes/*.toml; `--head` gives the box head another form. On a GPU a step is timed over all of them, the host
//! waiting once at the end. Prints one JSON line; `UPRES_PROFILE=1` adds the time of each op, `--plan` what lives at
//! the peak.

use std::collections::HashMap;
use std::io::Write;
use std::time::Instant;

use upres::cpu::use_threads;
use upres::data::Shape;
use upres::device::choice::DeviceChoice;
use upres::device::op_times;
use upres::device::reset_op_times;
use upres::engine::{Engine, StageSetup};
use upres::models::config::{BoxHeadKind, Detector};
use upres::models::{PixelStats, Sampling};
use upres::recipe::{Precision, Recipe, Recompute, StageConfig};

#[path = "step/inputs.rs"]
mod inputs;

/// Of COCO.
const CLASSES: usize = 80;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let mut options: HashMap<String, String> = HashMap::new();
    let mut it = args.iter().peekable();
    while let Some(a) = it.next() {
        let value = it.next_if(|v| !v.starts_with("--")).cloned().unwrap_or_default();
        options.insert(a.trim_start_matches('-').to_string(), value);
    }
    let number = |key: &str, default: usize| -> usize {
        options.get(key).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("--{key}: not a number: {v}")))
    };
    use_threads(number("threads", 0)).expect("the first in this process");
    let (b, h, w, objects) = (number("images", 2), number("height", 448), number("width", 448), number("objects", 8));
    let detector = options.get("detector").map_or("faster", String::as_str);
    let mut recipe = recipe_of(detector);
    let head = set_head(&mut recipe, options.get("head").map(String::as_str));
    let config = &recipe.model;
    let stage = StageConfig { micro_batch: b, images_per_step: b, ..recipe.stages[0].clone() };
    let bucket = vec![Shape { height: h as u32, width: w as u32 }];
    let mut setup = StageSetup::new(&stage, bucket.clone(), bucket, 8.max(objects.next_multiple_of(8)));
    let batch = inputs::Batch::new(b, [h, w], objects, setup.max_gt, CLASSES);
    setup.mask_runs = if config.mask_size().is_some() { batch.room } else { 0 };
    let pixels = PixelStats { mean: recipe.data.mean, std: recipe.data.std };

    let choice: DeviceChoice = options.get("device").map_or("cpu", String::as_str).parse().expect("--device");
    let device = choice.open().unwrap_or_else(|e| panic!("{e}"));
    let precision = options.get("precision").map_or("f32", String::as_str);
    let precision: Precision = serde_json::from_value(precision.into()).expect("--precision");
    setup.dtype = precision.on(&device).unwrap_or_else(|e| panic!("{e}"));
    let again = options.get("recompute").map_or("none", String::as_str);
    setup.recompute = serde_json::from_value::<Recompute>(again.into()).expect("--recompute");
    let plan_device = device.planner();
    let start = Instant::now();
    let mut planner = Engine::new(&plan_device, config, CLASSES, pixels, 0).expect("plan: model");
    planner.enter_stage(&setup).expect("plan: stage");
    let pass = planner.train_pass(None, 0, 1.0, true, Sampling::Random).expect("plan: pass");
    let update = planner.update(None, 0.0, 1).expect("plan: update");
    let planned = plan_device.persistent_bytes() + pass.peak_bytes().max(update.peak_bytes());
    eprintln!("planned in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    if options.contains_key("plan") {
        let mib = |v: usize| v as f64 / f64::from(1 << 20);
        eprintln!("persistent {:.1} MiB, step {:.1} MiB", mib(plan_device.persistent_bytes()), mib(pass.peak_bytes()));
        eprintln!("lower bound of the step {:.1} MiB, {} buffers", mib(pass.lower_bound_bytes()), pass.allocs().len());
        for row in pass.live_at_peak().iter().take(30) {
            eprintln!("{:9.2} MiB {:4} {}", mib(row.bytes), row.buffers, row.scope);
        }
    }

    let mut engine = Engine::new(&device, config, CLASSES, pixels, 0).expect("model");
    engine.enter_stage(&setup).expect("stage");
    engine.device().reserve_arena(pass.peak_bytes().max(update.peak_bytes())).expect("memory");
    let mut times = Vec::new();
    let lr = if detector == "mask_swin" { 1e-4 } else { 1e-3 };
    // A GPU's first steps choose algorithms and record.
    let (steps, warm_up) = (number("steps", 5), if device.runs_kernels() { 5 } else { 1 });
    let mut begin = Instant::now();
    for step in 0..warm_up + steps {
        if step == warm_up {
            reset_op_times();
            if device.runs_kernels() {
                device.gpu().synchronize().expect("the steps so far");
            }
            begin = Instant::now();
        }
        let start = Instant::now();
        let inputs = engine.train_inputs(0);
        inputs.load(&batch.host()).unwrap();
        inputs.set_key(0, 0, step as u64, 0).unwrap();
        engine.train_pass(Some(&pass), 0, 1.0, true, Sampling::Random).expect("pass");
        engine.update(Some(&update), lr, 1 + step as u64).expect("update");
        let ms = start.elapsed().as_secs_f64() * 1e3;
        if !device.runs_kernels() {
            eprintln!("step {step}: {ms:.0} ms, losses {:?}", engine.losses().unwrap());
        }
        if step >= warm_up {
            times.push(ms);
        }
    }
    if device.runs_kernels() {
        device.gpu().synchronize().expect("the steps");
        times = vec![begin.elapsed().as_secs_f64() * 1e3 / steps as f64];
    }
    eprintln!("losses {:?}", engine.losses().unwrap());
    for (name, t) in op_times().iter().take(60) {
        eprintln!("{:9.1} ms {:6} {name}", t.total.as_secs_f64() * 1e3 / times.len() as f64, t.calls);
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let used = device.persistent_bytes() + device.arena_high_water();
    let line = serde_json::json!({
        "bench": "step", "name": format!("{}{head}_{b}x{h}x{w}", recipe.name), "detector": detector, "impl": "upres", "median_ms": median,
        "min_ms": times[0], "images_per_s": b as f64 / median * 1e3, "peak_rss_mib": peak_rss_mib(),
        "planned_mib": planned as f64 / f64::from(1 << 20), "in_use_mib": used as f64 / f64::from(1 << 20),
        "precision": setup.dtype.name(), "recompute": again, "step_mib": pass.peak_bytes() as f64 / f64::from(1 << 20),
        "threads": rayon::current_num_threads(), "device": format!("{device:?}"),
    });
    println!("{line}");
    if let Some(path) = options.get("json") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("--json");
        writeln!(file, "{line}").expect("--json");
    }
}

/// The paper's recipe of a detector.
fn recipe_of(detector: &str) -> Recipe {
    let name = match detector {
        "faster" => "faster_rcnn_r50_fpn",
        "cascade" => "cascade_rcnn_r50_fpn",
        "mask" => "mask_rcnn_r50_fpn",
        "retinanet" => "retinanet_r50_fpn",
        "mask_swin" => "mask_rcnn_swin_t_fpn",
        _ => panic!("--detector: want faster, cascade, mask, retinanet or mask_swin, got {detector}"),
    };
    Recipe::read(format!("recipes/{name}.toml"), &[]).unwrap_or_else(|e| panic!("{e}"))
}

/// Gives the box head the form that was asked for, if any; how it is called in the bench's name.
fn set_head(recipe: &mut Recipe, head: Option<&str>) -> &'static str {
    if recipe.model.detector == Detector::RetinaNet {
        assert!(head.is_none(), "--head: RetinaNet has no box head");
        return "";
    }
    let kind = &mut recipe.model.box_head.kind;
    match head {
        Some("2fc") => *kind = BoxHeadKind::Shared2Fc,
        Some("4conv1fc") => *kind = BoxHeadKind::Shared4Conv1Fc,
        Some(other) => panic!("--head: want 2fc or 4conv1fc, got {other}"),
        None => {}
    }
    if *kind == BoxHeadKind::Shared2Fc { "_2fc" } else { "_4conv1fc" }
}

/// Largest resident set of this process so far (Linux), else 0.
fn peak_rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
