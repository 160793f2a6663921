//! Training in 16 bits: what is stored, planned, scaled and skipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use crate::support::programs::*;
use crate::support::small::*;
use crate::support::tensors::{floats, gpus};
use half::bf16;
use upres::device::{Device, StepPlan};
use upres::engine::{Engine, StageSetup};
use upres::models::Sampling;
use upres::models::config::{BackboneKind, Detector, ModelConfig};
use upres::ops::loss_scale::INITIAL_SCALE;
use upres::recipe::{NormMode, OptimizerKind, Recompute, StatePrecision};
use upres::run::checkpoint::{self, Checkpoint, Meta};
use upres::tape::{Param, Role, watch};
use upres::tensor::DType;

const HALVES: [DType; 2] = [DType::F16, DType::BF16];

fn setup_in(model: &ModelConfig, batch: usize, dtype: DType) -> StageSetup {
    StageSetup { dtype, ..setup_of(model, batch, NormMode::Train) }
}

/// A loss scale at which no gradient of the small detectors overflows.
const SCALE: f32 = 256.0;

/// Sets the loss scale of an engine that has one.
fn set_scale(e: &mut Engine, scale: f32) {
    let state: BTreeMap<String, Vec<f32>> = e.state().into_iter().map(|(n, t)| (n, t.to_vec().unwrap())).collect();
    let find = |name: &str, _: usize| {
        Ok(if name == "loss_scale" { vec![scale, 0.0, state[name][2]] } else { state[name].clone() })
    };
    e.load_optimizer(|_| true, 0, find).unwrap();
}

fn gradients(e: &Engine) -> Vec<f64> {
    e.store.trainable().for_each(|p| p.finish_grad().unwrap());
    let of = |p: &Param| p.grad().as_ref().unwrap().to_vec::<f32>().unwrap();
    e.store.trainable().flat_map(of).map(f64::from).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The results of one training pass.
struct Pass {
    names: Vec<&'static str>,
    losses: Vec<f32>,
    /// Gradients divided by the loss scale.
    gradients: Vec<f64>,
    /// Running means and variances after the pass.
    statistics: Vec<f32>,
    planned: usize,
}

fn one_pass(model: &ModelConfig, device: &Device, s: &StageSetup) -> Pass {
    device.release_arena(); // what it held at most is counted anew
    let plans = plans_of(model, device, s);
    let mut e = engine_of(model, device, s);
    assert_eq!(device.persistent_bytes(), plans.persistent, "{:?}", s.dtype);
    set_scale(&mut e, SCALE);
    load(&mut e, &pictures(2), 0);
    e.train_pass(Some(&plans.pass), 0, 1.0, true, Sampling::Strided).unwrap();
    assert_eq!(device.arena_high_water(), plans.pass.peak_bytes(), "{:?}: memory in use is the plan", s.dtype);
    let scale = if s.dtype == DType::F16 { f64::from(SCALE) } else { 1.0 };
    let statistics = e.store.all().iter().filter(|p| p.role() == Role::Statistic);
    Pass {
        names: e.loss_names().to_vec(),
        losses: e.losses().unwrap(),
        gradients: gradients(&e).iter().map(|g| g / scale).collect(),
        statistics: statistics.flat_map(|p| p.value().to_vec::<f32>().unwrap()).collect(),
        planned: plans.pass.peak_bytes(),
    }
}

/// Every detector family on both kinds of backbone, on the CPU and in kernels: losses, the direction of the gradient
/// and running statistics equal f32's up to the rounding of activations (2^-11 and 2^-8 of each, over some twenty
/// layers), and rematerialisation changes nothing.
#[test]
fn half_precision_is_f32_but_for_rounding() {
    let gpus: Vec<Device> = gpus().into_iter().filter_map(|(_, devices)| devices.into_iter().next()).collect();
    for detector in Detector::ALL {
        for kind in [BackboneKind::Resnet18, BackboneKind::SwinT] {
            let model = small_of(detector, kind);
            let pass = |device: &Device, dtype, recompute| {
                one_pass(&model, device, &StageSetup { recompute, ..setup_in(&model, 2, dtype) })
            };
            let whole = pass(&Device::cpu(), DType::F32, Recompute::None);
            for (device, (dtype, rel, angle)) in [Device::cpu()]
                .iter()
                .chain(&gpus)
                .flat_map(|d| [(DType::F16, 0.01, 0.99), (DType::BF16, 0.05, 0.9)].map(|case| (d, case)))
            {
                let what = format!("{detector:?} on {kind:?} in {} on {device:?}", dtype.name());
                let half = pass(device, dtype, Recompute::None);
                // The sampled RoIs depend on the proposals: if rounding swaps two of them, the few positives of two
                // small pictures change. Everything computed on samples is therefore compared loosely in kernels, which
                // round differently from the CPU.
                let (sampled_abs, angle) =
                    if device.runs_kernels() { (0.1, f64::min(angle, 0.9)) } else { (0.0, angle) };
                for ((a, b), name) in whole.losses.iter().zip(&half.losses).zip(&whole.names) {
                    let abs = if name.starts_with("roi") || name.starts_with('s') || *name == "mask" {
                        sampled_abs
                    } else {
                        0.0
                    };
                    let within = (a - b).abs() <= rel * a.abs().max(0.1) + abs;
                    assert!(within, "{what}: {name}: {:?} {:?}", whole.losses, half.losses);
                }
                let cos = cosine(&whole.gradients, &half.gradients);
                assert!(cos > angle, "{what}: the gradient turns by {cos}");
                for (a, b) in whole.statistics.iter().zip(&half.statistics) {
                    assert!((a - b).abs() <= rel * a.abs().max(0.5), "{what}: statistics {a} {b}");
                }
                for how in [Recompute::Norms, Recompute::Blocks] {
                    if device.runs_kernels() && dtype == DType::BF16 {
                        continue; // as f16
                    }
                    let again = pass(device, dtype, how);
                    assert!(half.losses == again.losses && half.gradients == again.gradients, "{what}: {how:?}");
                    assert!(half.statistics == again.statistics, "{what}: {how:?}: statistics");
                    let less = again.planned < half.planned;
                    // On the CPU 16-bit ops keep their inputs, whatever `recompute` says.
                    let same = how == Recompute::Norms && again.planned == half.planned && !device.runs_kernels();
                    assert!(less || same, "{what}: {how:?}");
                }
            }
        }
    }
}

/// If a checkpoint has no loss scale, the scale starts anew, but the optimizer's step count continues.
#[test]
fn another_precision_goes_on_with_the_steps_of_the_optimizer() {
    let device = Device::cpu();
    let mut e = engine_of(&small(), &device, &setup_in(&small(), 2, DType::F16));
    let state: BTreeMap<String, Vec<f32>> = e.state().into_iter().map(|(n, t)| (n, t.to_vec().unwrap())).collect();
    e.load_optimizer(|name| name != "loss_scale", 41, |name, _| Ok(state[name].clone())).unwrap();
    let scale = e.state().into_iter().find(|(name, _)| name == "loss_scale").unwrap().1;
    assert_eq!(scale.f32s(), [65536.0, 0.0, 41.0]);
}

/// A GPU's plan in 16 bits is much smaller, with the same kinds of buffers.
#[test]
fn sixteen_bits_halve_what_a_gpu_plans_for_activations() {
    use upres::device::Target;
    let model = small_of(Detector::MaskRcnn, BackboneKind::Resnet50);
    let peak = |dtype| {
        // A GPU's kernels, without the constant workspaces of its libraries.
        let planner = Device::plan_for(Target::Sim);
        let mut e = engine_of(&model, &planner, &setup_in(&model, 8, dtype));
        e.train_pass(None, 0, 1.0, true, Sampling::Random).unwrap().lower_bound_bytes()
    };
    let (whole, half) = (peak(DType::F32), peak(DType::F16));
    assert!(half as f64 <= 0.65 * whole as f64, "{half} of {whole}");
    assert_eq!(half, peak(DType::BF16));
}

fn steps_in(model: &ModelConfig, s: &StageSetup, steps: u64) -> f32 {
    let device = Device::cpu();
    let plans = plans_of(model, &device, s);
    let mut e = engine_of(model, &device, s);
    let p = pictures(4);
    let lr = if s.optimizer.kind == OptimizerKind::Sgd { 0.02 } else { 0.002 };
    for step in 0..steps {
        load(&mut e, &p, step);
        e.train_pass(Some(&plans.pass), 0, 1.0, true, Sampling::Random).unwrap();
        e.update(Some(&plans.update), lr * (1.0 - step as f64 / steps as f64), step + 1).unwrap();
    }
    e.losses().unwrap().iter().sum()
}

/// 200 steps from one seed end at similar losses: four pictures are memorised in every precision.
#[test]
fn two_hundred_steps_end_together() {
    let s = |dtype| StageSetup { dtype, ..setup(4, NormMode::Train) };
    let whole = steps_in(&small(), &s(DType::F32), 200);
    for dtype in HALVES {
        let half = steps_in(&small(), &s(dtype), 200);
        // The loss starts at about 2. In f32 alone, seeds differ as much.
        assert!((half - whole).abs() < 0.15, "{}: loss {half}, in f32 {whole}", dtype.name());
    }
}

/// Like [`setup`], with an optimizer whose state is stored as `state`.
fn setup_with(kind: OptimizerKind, state: StatePrecision) -> StageSetup {
    let mut s = setup(4, NormMode::Train);
    (s.optimizer.kind, s.optimizer.state) = (kind, state);
    s
}

/// Optimizer state of half the bytes: the plan shows it, memory in use equals the plan, and four pictures are memorised
/// as in f32.
#[test]
fn state_in_bf16_is_half_of_it_and_ends_together() {
    for kind in [OptimizerKind::Sgd, OptimizerKind::Adamw] {
        let of = |state, steps| {
            let (s, device) = (setup_with(kind, state), Device::cpu());
            let planned = plans_of(&small(), &device, &s).persistent;
            let parts = engine_of(&small(), &device, &s).persistent_parts();
            assert_eq!(parts.total(), planned, "{kind:?}, {state:?}");
            (parts.optimizer_state, steps_in(&small(), &s, steps))
        };
        let ((bytes, loss), (half, loss_bf16)) = (of(StatePrecision::F32, 100), of(StatePrecision::Bf16, 100));
        assert!(half < bytes / 2 + bytes / 50, "{half} of {bytes}"); // tensors begin at multiples of 64 bytes
        eprintln!("{kind:?}: loss {loss_bf16}, with state in f32 {loss}");
        assert!((loss_bf16 - loss).abs() < 0.15, "{kind:?}: loss {loss_bf16}, with state in f32 {loss}");
        let three = [StatePrecision::F32, StatePrecision::Auto, StatePrecision::Bf16].map(|state| of(state, 3));
        assert!(three[0] == three[1] && three[1].1 != three[2].1, "auto is f32, to the bit: {three:?}");
    }
}

/// Each step, stage and run rounds with random numbers of its own; a repeated step uses the same ones.
#[test]
fn rounding_follows_seed_stage_and_step() {
    let device = Device::cpu();
    let velocities = |seed: u64, index: u8, step: u64| {
        let mut s = StageSetup { index, ..setup_with(OptimizerKind::Sgd, StatePrecision::Bf16) };
        s.optimizer.weight_decay = 0.0; // the gradients are zero: what is there decays
        let plans = plans_of(&small(), &device, &s);
        let mut e = Engine::new(&device, &small(), CLASSES, PIXELS, seed).unwrap();
        e.enter_stage(&s).unwrap();
        e.load_optimizer(|_| true, 0, |_, n| Ok(vec![1.0; n])).unwrap();
        e.update(Some(&plans.update), 0.01, step).unwrap();
        let state = e.state().into_iter().filter(|(name, _)| name.starts_with("momentum."));
        state.flat_map(|(_, t)| floats(&t)).collect::<Vec<f32>>()
    };
    let first = velocities(7, 0, 1);
    assert!(first == velocities(7, 0, 1));
    for (seed, index, step) in [(8, 0, 1), (7 << 32 | 7, 0, 1), (7, 1, 1), (7, 0, 2), (7, 0, 1 << 32 | 1)] {
        assert!(first != velocities(seed, index, step), "seed {seed}, stage {index}, step {step}");
    }
}

/// State through checkpoints: f32 to bf16 is rounded to nearest, everything else is exact.
#[test]
fn state_is_converted_to_what_the_stage_stores() {
    let dir = tempfile::tempdir().unwrap();
    let (file, device) = (dir.path().join("c.safetensors"), Device::cpu());
    for kind in [OptimizerKind::Sgd, OptimizerKind::Adamw] {
        let engine = |state| engine_of(&small(), &device, &setup_with(kind, state));
        let state = |e: &Engine| {
            let all =
                e.state().into_iter().filter(|(name, _)| name.starts_with("momentum.") || name.starts_with("exp_avg"));
            all.map(|(_, t)| floats(&t)).collect::<Vec<_>>()
        };
        let through_a_file = |from: &Engine, to| {
            checkpoint::save(&file, &Meta::new(String::new(), Vec::new(), Vec::new()), &from.state()).unwrap();
            let (c, mut e) = (Checkpoint::load(&file).unwrap(), engine(to));
            e.load_optimizer(|name| c.has(name), 3, |name, n| c.values(name, n)).unwrap();
            e
        };
        let plans = plans_of(&small(), &device, &setup_with(kind, StatePrecision::F32));
        let mut whole = engine(StatePrecision::F32);
        load(&mut whole, &pictures(4), 0);
        for step in 1..=3 {
            whole.train_pass(Some(&plans.pass), 0, 1.0, true, Sampling::Random).unwrap();
            whole.update(Some(&plans.update), 0.01, step).unwrap();
        }
        let half = through_a_file(&whole, StatePrecision::Bf16);
        let rounded = |list: Vec<f32>| list.into_iter().map(|v| bf16::from_f32(v).to_f32()).collect::<Vec<_>>();
        let want: Vec<_> = state(&whole).into_iter().map(rounded).collect();
        assert!(want.iter().flatten().any(|v| *v != 0.0) && want != state(&whole));
        assert!(state(&half) == want, "{kind:?}: to the nearest");
        for to in [StatePrecision::F32, StatePrecision::Bf16, StatePrecision::Auto] {
            assert!(state(&through_a_file(&half, to)) == want, "{kind:?}: {to:?} is exact");
        }
    }
    // The largest f32 does not become infinity.
    let mut e = engine_of(&small(), &device, &setup_with(OptimizerKind::Sgd, StatePrecision::Bf16));
    e.load_optimizer(|_| true, 0, |name, n| Ok(vec![if name.starts_with("momentum.") { f32::MAX } else { 0.0 }; n]))
        .unwrap();
    let (_, t) = e.state().into_iter().find(|(name, _)| name.starts_with("momentum.")).unwrap();
    assert!(floats(&t).iter().all(|v| *v == bf16::MAX.to_f32()));
}

struct Scaled {
    e: Engine,
    pass: Rc<StepPlan>,
    update: Rc<StepPlan>,
    steps: u64,
}

impl Scaled {
    fn new(device: &Device, kind: OptimizerKind) -> Scaled {
        let mut s = setup_in(&small(), 2, DType::F16);
        s.optimizer.kind = kind;
        let plans = plans_of(&small(), device, &s);
        let mut e = engine_of(&small(), device, &s);
        load(&mut e, &pictures(2), 0);
        Scaled { e, pass: plans.pass, update: plans.update, steps: 0 }
    }

    /// Takes one step and returns the norm of its gradient.
    fn step(&mut self) -> f32 {
        self.e.train_pass(Some(&self.pass), 0, 1.0, true, Sampling::Strided).unwrap();
        self.steps += 1;
        self.e.update(Some(&self.update), 1e-4, self.steps).unwrap();
        self.e.grad_norm().unwrap()
    }

    /// All state except the loss scale and the running statistics, which a forward pass moves; then the state of the
    /// scale.
    fn state(&self) -> (Vec<Vec<f32>>, Vec<f32>) {
        let (mut all, mut scale) = (Vec::new(), Vec::new());
        for (name, t) in self.e.state().into_iter().filter(|(name, _)| !name.contains("running_")) {
            let values = t.to_vec::<f32>().unwrap();
            if name == "loss_scale" {
                scale = values
            } else if !name.starts_with("ema.") {
                all.push(values)
            }
        }
        (all, scale)
    }
}

/// A scale that is too large skips one step without a host read: weights and optimizer state stay, the scale halves,
/// and the next step is taken.
#[test]
fn an_overflow_skips_one_step_and_loses_nothing() {
    let devices = gpus().into_iter().filter_map(|(_, d)| d.into_iter().next()).chain([Device::cpu()]);
    for (device, kind) in devices.flat_map(|d| [(d.clone(), OptimizerKind::Sgd), (d, OptimizerKind::Adamw)]) {
        let mut run = Scaled::new(&device, kind);
        // The first gradients are large, so the scale falls until they fit.
        let falls = (0..8).take_while(|_| !run.step().is_finite()).count() as i32;
        assert_eq!(run.state().1, [65536.0 * 0.5f32.powi(falls), 1.0, 1.0], "{kind:?} on {device:?}");
        set_scale(&mut run.e, 1e30);
        let before = run.state();
        assert!(!run.step().is_finite(), "{kind:?} on {device:?}");
        let after = run.state();
        assert!(before.0 == after.0, "{kind:?} on {device:?}: a skipped step changes nothing");
        assert_eq!(after.1, [5e29, 0.0, 1.0]);
        set_scale(&mut run.e, 1024.0);
        assert!(run.step().is_finite());
        assert!(run.state().0 != after.0);
        assert_eq!(run.state().1, [1024.0, 1.0, 2.0]);
    }
}

/// On request, the first tensor that is not finite is named, in the forward and in the backward pass.
#[test]
fn the_first_tensor_that_is_not_finite_is_named() {
    watch::enable(true);
    let device = Device::cpu();
    for dtype in [DType::F32, DType::F16] {
        let s = setup_in(&small(), 2, dtype);
        let plans = plans_of(&small(), &device, &s);
        let mut e = engine_of(&small(), &device, &s);
        set_scale(&mut e, SCALE);
        load(&mut e, &pictures(2), 0);
        let pass = |e: &mut Engine| {
            e.train_pass(Some(&plans.pass), 0, 1.0, true, Sampling::Strided).unwrap();
            watch::found()
        };
        assert_eq!(pass(&mut e), None, "{dtype:?}");
        if dtype == DType::F16 {
            set_scale(&mut e, 1e30);
            let found = pass(&mut e).expect("an overflow");
            assert!(found.starts_with("gradient of the output of ") && found.contains("/backward/"), "{found}");
            set_scale(&mut e, SCALE);
        }
        let weight = e.store.get("backbone.layer2.0.conv1.weight").unwrap();
        let values = vec![f32::MAX; weight.numel()];
        weight.load(&values).unwrap();
        let found = pass(&mut e).expect("an overflow");
        // In 16 bits the weight itself is first stored as infinity.
        let op = if dtype == DType::F32 { "conv2d" } else { "cast" };
        assert!(found.starts_with(&format!("output of backbone/layer2/{op}")), "{found}");
    }
    watch::enable(false);
}

/// The tensors of the last checkpoint of an f16 run, without the times and paths of its header.
fn tensor_bytes(run: &Path) -> Vec<u8> {
    let file = fs::read(last(run)).unwrap();
    let n = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    assert!(String::from_utf8_lossy(&file[8..8 + n]).contains("\"loss_scale\""), "the scale is saved");
    file[8 + n..].to_vec()
}

/// A stopped f16 run resumes bit-exactly, including its loss scale, and every precision resumes from a checkpoint of
/// another.
#[test]
fn a_run_is_resumed_in_its_precision_and_in_others() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let f16 = ["--set", "stage.pretrain.precision=f16"];
    train(&recipe, &whole, &[&f16[..], &["--stop-after", "14"]].concat()).done();
    train(&recipe, &parts, &[&f16[..], &["--stop-after", "5"]].concat()).done();
    let resume = |more: &[&str]| run("train", [&["--resume", parts.to_str().unwrap()], more].concat()).done();
    resume(&["--stop-after", "14"]);
    assert!(tensor_bytes(&whole) == tensor_bytes(&parts), "stopped and resumed is not stopped");
    for (precision, stop) in [("f32", "16"), ("bf16", "18"), ("f16", "20")] {
        let key = format!("stage.pretrain.precision={precision}");
        resume(&["--set", &key, "--stop-after", stop]);
    }
}

/// A checkpoint may be written at a step whose gradient overflowed: the step was skipped, and the weights are those
/// from before.
#[test]
fn a_checkpoint_on_a_skipped_step() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, out) = (write_recipe(dir.path(), shapes()), dir.path().join("run"));
    // Too large for the initial loss scale.
    let overflows = ["--set", "stage.pretrain.precision=f16", "--set", "model.rpn.cls_loss_weight=1e4"];
    train(&recipe, &out, &[&overflows[..], &["--stop-after", "1"]].concat()).done();
    let file = fs::read(last(&out)).unwrap();
    let state = safetensors::SafeTensors::deserialize(&file).unwrap().tensor("loss_scale").unwrap().data().to_vec();
    let scale = f32::from_le_bytes(state[..4].try_into().unwrap());
    assert_eq!(scale, INITIAL_SCALE / 2.0, "the first step overflows");
    run("train", ["--resume".as_ref(), out.as_os_str(), "--stop-after".as_ref(), "12".as_ref()]).done();
    let other = dir.path().join("whole");
    train(&recipe, &other, &[&overflows[..], &["--stop-after", "12"]].concat()).done();
    assert!(tensor_bytes(&out) == tensor_bytes(&other), "goes on to the bit");
}

/// A stopped run with bf16 state resumes bit-exactly, into the next stage too, and a run resumes with state of the
/// other type.
#[test]
fn a_run_is_resumed_with_its_state_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let keys = ["stage.pretrain.optimizer.state=bf16", "stage.finetune.optimizer.state=bf16", "stage.pretrain.steps=6"];
    let sets = keys.map(|key| ["--set", key]).concat();
    train(&recipe, &whole, &[&sets[..], &["--stop-after", "9"]].concat()).done();
    train(&recipe, &parts, &[&sets[..], &["--stop-after", "3"]].concat()).done();
    let resume = |more: &[&str]| run("train", [&["--resume", parts.to_str().unwrap()], more].concat()).done();
    let read = |run: &std::path::Path| {
        let file = std::fs::read(last(run)).unwrap();
        let n = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        (String::from_utf8_lossy(&file[8..n]).matches("\"BF16\"").count(), file[n..].to_vec())
    };
    assert!(read(&parts).0 > 0, "AdamW's state is bf16 in the file");
    resume(&["--stop-after", "8"]);
    resume(&["--stop-after", "9"]);
    assert!(read(&whole).0 > 0 && read(&whole) == read(&parts), "stopped and resumed is not stopped");
    for (state, stop) in [("f32", "10"), ("bf16", "11"), ("auto", "12")] {
        resume(&["--set", &format!("stage.finetune.optimizer.state={state}"), "--stop-after", stop]);
        assert_eq!(read(&parts).0 > 0, state == "bf16", "{state}");
    }
}
