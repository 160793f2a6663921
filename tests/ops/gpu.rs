//! Whole training steps on every GPU of this build (the simulated device, and an NVIDIA GPU if there is one) give the
//! same training as the CPU.

use crate::support::small::*;
use crate::support::tensors::{floats, gpus};
use upres::device::gpu::Grid;
use upres::device::{Device, Target};
use upres::models::config::ModelConfig;
use upres::models::{HostBatch, Sampling};
use upres::recipe::{NormMode, OptimizerKind, StatePrecision};
use upres::tensor::{DType, Tensor};

/// The result of some training steps: losses and gradient norm of each step, then the number of detections in each
/// image.
#[derive(PartialEq)]
struct Run {
    steps: Vec<(Vec<f32>, f32)>,
    detections: Vec<usize>,
}

/// A learning rate so small that two runs stay together. Training is chaotic: on the CPU alone, weights that differ in
/// their last bit flip a ReLU of the smallest maps by the third step (the gradient norm moves by 3e-4 of itself), and
/// at a rate of 0.01 the samples differ by the seventh. At this rate a run of 20 steps stays within the tolerance.
const LR: f64 = 2e-5;

fn train(device: &Device, norm: NormMode, steps: u64, accumulate: usize) -> Run {
    train_of(&small(), device, norm, steps, accumulate)
}

fn train_of(model: &ModelConfig, device: &Device, norm: NormMode, steps: u64, accumulate: usize) -> Run {
    let s = setup_of(model, 2, norm);
    let plans = plans_of(model, device, &s);
    let mut e = engine_of(model, device, &s);
    assert_eq!(device.persistent_bytes(), plans.persistent);
    let mut out = Vec::new();
    for step in 0..steps {
        for pass in 0..accumulate {
            load(&mut e, &pictures(2), step);
            let weight = 1.0 / accumulate as f32;
            e.train_pass(Some(&plans.pass), 0, weight, pass == 0, Sampling::Random).unwrap();
        }
        let losses = e.losses_later().unwrap();
        e.update(Some(&plans.update), LR, step + 1).unwrap();
        out.push((losses().unwrap(), e.grad_norm_later().unwrap()().unwrap()));
    }
    let (p, empty) = (pictures(2), [0.0; 8]);
    e.eval_inputs(0)
        .load(&HostBatch {
            images: &p.images,
            sizes: &p.sizes,
            scale: &p.scale,
            gt_boxes: &empty,
            gt_labels: &[-1; 2],
            gt_count: &[0; 2],
            ..Default::default()
        })
        .unwrap();
    let mut detections = Vec::new();
    for _ in 0..3 {
        e.eval_pass(Some(&plans.eval), 0).unwrap(); // run, recorded, replayed
        detections = e.detections(0).unwrap().iter().map(Vec::len).collect();
    }
    let peak = plans.pass.peak_bytes().max(plans.update.peak_bytes()).max(plans.eval.peak_bytes());
    assert_eq!(device.arena_high_water(), peak, "memory in use is the plan to the byte");
    assert_eq!(device.persistent_bytes(), plans.persistent);
    Run { steps: out, detections }
}

/// The steps are executed, recorded and replayed. Equal losses imply that the samples are the same too.
#[test]
fn training_is_that_of_the_cpu() {
    for (norm, steps, accumulate) in [(NormMode::Train, 20, 1), (NormMode::Frozen, 5, 2)] {
        let want = train(&Device::cpu(), norm, steps, accumulate);
        for (name, devices) in gpus() {
            let device = devices.last().expect("a device");
            // On a GPU convolutions multiply in TF32 (10 bits), and one sample may change: only the first steps are
            // compared, and loosely.
            let is_sim = device.target() == Target::Sim;
            let (rel, rel_norm, steps) = if is_sim { (1e-4, 1e-2, steps) } else { (2e-2, 5e-2, 3) };
            let got = train(device, norm, steps, accumulate);
            for (i, (got, want)) in got.steps.iter().zip(&want.steps).enumerate() {
                let losses = got.0.iter().zip(&want.0).all(|(g, w)| (g - w).abs() <= rel * w.abs());
                let norms = (got.1 - want.1).abs() <= rel_norm * want.1;
                assert!(losses && norms, "{name}, {norm:?}, step {i}: {got:?}, the CPU {want:?}");
            }
            if is_sim {
                assert_eq!(got.detections, want.detections, "{name}, {norm:?}");
            }
        }
    }
}

/// Every detector family, and both kinds of backbone.
#[test]
fn every_detector_trains_as_on_the_cpu() {
    use upres::models::config::{BackboneKind::*, Detector::*};
    for (detector, backbone) in [(CascadeRcnn, Resnet18), (MaskRcnn, SwinT), (RetinaNet, Resnet18)] {
        let model = small_of(detector, backbone);
        let want = train_of(&model, &Device::cpu(), NormMode::Train, 3, 1);
        for (name, devices) in gpus() {
            let device = devices.last().expect("a device");
            let is_sim = device.target() == Target::Sim;
            let (rel, rel_norm) = if is_sim { (1e-4, 1e-2) } else { (2e-2, 5e-2) };
            let got = train_of(&model, device, NormMode::Train, 3, 1);
            for (i, (got, want)) in got.steps.iter().zip(&want.steps).enumerate() {
                let losses = got.0.iter().zip(&want.0).all(|(g, w)| (g - w).abs() <= rel * w.abs().max(1e-3));
                let norms = (got.1 - want.1).abs() <= rel_norm * want.1;
                assert!(losses && norms, "{name}, {detector:?} on {backbone:?}, step {i}: {got:?}, the CPU {want:?}");
            }
            if is_sim {
                assert_eq!(got.detections, want.detections, "{name}, {detector:?}");
            }
        }
    }
}

/// Two runs give the same bits.
#[test]
fn training_repeats_itself() {
    for (name, devices) in gpus() {
        let [first, again] = [0, 1].map(|i| train(&devices[i], NormMode::Train, 4, 1));
        assert_eq!(first.steps, again.steps, "{name}");
        assert_eq!(first.detections, again.detections, "{name}");
    }
}

/// Optimizer state in bf16 has the same bits as on the CPU, whether a step is executed, recorded or replayed, although
/// each step has its own random numbers. The gradients are zero: weight decay and existing state move the weights.
#[test]
fn state_in_bf16_is_that_of_the_cpu() {
    let run = |device: &Device, kind: OptimizerKind| {
        let mut s = setup(2, NormMode::Train);
        (s.index, s.optimizer.kind, s.optimizer.state) = (1, kind, StatePrecision::Bf16);
        s.optimizer.weight_decay = 0.1;
        let plans = plans_for(device, &s);
        let mut e = engine(device, &s);
        let some = |n: usize| (0..n).map(|i| (1 + i % 7) as f32 * 0.0123).collect::<Vec<f32>>();
        e.load_optimizer(|_| true, 0, |_, n| Ok(some(n))).unwrap();
        let mut after = Vec::new();
        for step in 1..=5 {
            e.update(Some(&plans.update), 0.01, step).unwrap();
            after.push(e.state().into_iter().map(|(name, t)| (name, floats(&t))).collect::<Vec<_>>());
        }
        after
    };
    for kind in [OptimizerKind::Sgd, OptimizerKind::Adamw] {
        let want = run(&Device::cpu(), kind);
        for (name, devices) in gpus() {
            let got = run(&devices[0], kind);
            for (step, (got, want)) in got.iter().zip(&want).enumerate() {
                for ((tensor, got), (_, want)) in got.iter().zip(want) {
                    assert!(got == want, "{name}, {kind:?}, step {step}: {tensor}");
                }
            }
        }
    }
}

/// Launches every kernel of a training step once, for the sanitizers.
#[test]
fn one_small_step() {
    for (_, devices) in gpus() {
        train(&devices[0], NormMode::Train, 1, 1);
    }
}

/// No part of a training step waits for the device.
#[test]
fn no_step_waits_for_the_device() {
    for (name, devices) in gpus() {
        let device = &devices[0];
        let s = setup(2, NormMode::Train);
        let plans = plans_for(device, &s);
        let mut e = engine(device, &s);
        let before = device.gpu().host_syncs();
        for step in 0..3 {
            load(&mut e, &pictures(2), step);
            e.train_pass(Some(&plans.pass), 0, 1.0, true, Sampling::Random).unwrap();
            e.update(Some(&plans.update), 0.01, step + 1).unwrap();
        }
        assert_eq!(device.gpu().host_syncs(), before, "{name}");
        e.losses().unwrap();
        assert!(device.gpu().host_syncs() > before, "{name}");
    }
}

/// The warp and block functions of kernels/common, on the device.
#[test]
fn warp_and_block_functions() {
    for (name, devices) in gpus() {
        for dev in &devices {
            let x: Vec<i32> = (0..384).map(|i| i * 37 % 101 - 50).collect();
            let mut sums = Tensor::zeros(dev, &[384 * 6], DType::I32).unwrap();
            let mut counter = Tensor::from_slice(dev, &[2], &[0, i32::MIN]).unwrap();
            let input = Tensor::from_slice(dev, &[384], &x).unwrap();
            let k = dev.gpu().kernel("selftest_collectives", DType::I32).out(&mut sums).out(&mut counter).arg(&input);
            // SAFETY: 3 x 128 elements of x, six numbers for each in sums, two counters.
            unsafe { k.launch(Grid::blocks(3, 128)) }.unwrap();
            let sums = sums.to_vec::<i32>().unwrap();
            for (b, block) in x.chunks(128).enumerate() {
                let all: i32 = block.iter().sum();
                let (most, positive) = (*block.iter().max().unwrap(), block.iter().filter(|v| **v > 0).count() as i32);
                for (i, got) in sums[b * 128 * 6..][..128 * 6].chunks(6).enumerate() {
                    let odd = block[i / 32 * 32..][..32].iter().filter(|v| **v & 1 == 1).count() as i32;
                    let before: i32 = block[..i].iter().sum();
                    assert_eq!(got, [before, all, all, most, odd, 5 + 100 * positive], "{name}, block {b}, thread {i}");
                }
            }
            let (sum, most) = (x.iter().sum::<i32>(), *x.iter().max().unwrap());
            assert_eq!(counter.to_vec::<i32>().unwrap(), [sum, most], "{name}");
        }
    }
}

/// Small integers: the sum is exact in every order, and a wrong position in a fragment shows.
#[test]
fn tensor_core_products() {
    let numbers = |seed: i32, n: usize| (0..n as i32).map(move |i| ((i * 7 + seed) * (i + 3) % 23 - 11) as f32);
    let (a, b, c): (Vec<f32>, Vec<f32>, Vec<f32>) =
        (numbers(1, 256).collect(), numbers(2, 128).collect(), numbers(3, 128).collect());
    let mut want = c.clone();
    for (i, d) in want.iter_mut().enumerate() {
        *d += (0..16).map(|k| a[i / 8 * 16 + k] * b[i % 8 * 16 + k]).sum::<f32>();
    }
    for (name, devices) in gpus() {
        let dev = &devices[0];
        let (mut d, c) =
            (Tensor::zeros(dev, &[16, 8], DType::F32).unwrap(), Tensor::from_slice(dev, &[16, 8], &c).unwrap());
        let halves = |v: &[f32]| v.iter().map(|&v| half::f16::from_f32(v)).collect::<Vec<_>>();
        let brains = |v: &[f32]| v.iter().map(|&v| half::bf16::from_f32(v)).collect::<Vec<_>>();
        let factors = [
            (Tensor::from_slice(dev, &[16, 16], &halves(&a)), Tensor::from_slice(dev, &[8, 16], &halves(&b))),
            (Tensor::from_slice(dev, &[16, 16], &brains(&a)), Tensor::from_slice(dev, &[8, 16], &brains(&b))),
        ];
        for (a, b) in factors {
            let (a, b) = (a.unwrap(), b.unwrap());
            let k = dev.gpu().kernel("selftest_mma", a.dtype()).out(&mut d).arg(&c).arg(&a).arg(&b);
            // SAFETY: d and c [16,8], a [16,16], b by columns [8,16], of one 16-bit type.
            unsafe { k.launch(Grid::blocks(1, 32)) }.unwrap();
            assert_eq!(d.to_vec::<f32>().unwrap(), want, "{name}, {}", a.dtype().name());
        }
    }
}
