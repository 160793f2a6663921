//! The simulated device computes what a GPU would, and detects the faults that it promises to detect.

use std::path::Path;

use crate::support::programs::*;
use upres::device::Device;
use upres::device::gpu::Grid;
use upres::tensor::{DType, Tensor};

/// Seeds of the thread order: 0 is ascending.
const SEEDS: std::ops::Range<u64> = 0..5;

fn zeros(dev: &Device, n: usize) -> Tensor {
    Tensor::zeros(dev, &[n], DType::F32).unwrap()
}

/// Runs `kernel(y)` on one block and returns the error.
fn fault(kernel: &str, threads: u32) -> String {
    let dev = Device::sim(1);
    let mut y = zeros(&dev, 64);
    let k = dev.gpu().kernel(kernel, DType::F32).out(&mut y);
    // SAFETY: the kernel takes y of 64 elements; the simulated device detects its fault.
    unsafe { k.launch(Grid::blocks(1, threads)) }.expect_err(kernel).to_string()
}

fn reverse(kernel: &str, seed: u64) -> Vec<f32> {
    let dev = Device::sim(seed);
    let x: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let (mut y, x) = (zeros(&dev, 256), Tensor::from_slice(&dev, &[256], &x).unwrap());
    let k = dev.gpu().kernel(kernel, DType::F32).out(&mut y).arg(&x);
    // SAFETY: y and x hold the 4 x 64 elements of the grid.
    unsafe { k.launch(Grid::blocks(4, 64)) }.unwrap();
    y.to_vec().unwrap()
}

#[test]
fn a_missing_barrier_shows_as_a_difference() {
    let want: Vec<f32> = (0..256).map(|i| (i / 64 * 64 + 63 - i % 64) as f32).collect();
    for seed in SEEDS {
        assert_eq!(reverse("selftest_reverse", seed), want);
        // Shared memory is poisoned and read before it is written.
        assert!(reverse("selftest_missing_barrier", seed).iter().any(|v| v.is_nan()), "order {seed}");
    }
}

#[test]
fn a_write_beyond_a_buffer_is_found() {
    let dev = Device::sim(0);
    let (mut y, _neighbour) = (zeros(&dev, 64), zeros(&dev, 64));
    for (at, found) in
        [(64i64, "0 bytes behind a buffer of 256 bytes"), (-1, "4 bytes before a buffer"), (70, "24 bytes behind")]
    {
        let k = dev.gpu().kernel("selftest_write_at", DType::F32).out(&mut y).params(&at);
        // SAFETY: it writes beyond y on purpose, into the guards around it.
        let error = unsafe { k.launch(Grid::blocks(1, 64)) }.unwrap_err().to_string();
        assert!(error.contains(found) && error.contains("selftest_write_at_f32"), "{error}");
    }
    let k = dev.gpu().kernel("selftest_write_at", DType::F32).out(&mut y).params(&63i64);
    // SAFETY: 63 is inside y.
    unsafe { k.launch(Grid::blocks(1, 64)) }.expect("found once each, and mended");
    assert!(fault("selftest_shared_overrun", 64).contains("beyond a shared variable of 40 bytes"));
}

#[test]
fn warps_that_part_ways_are_found() {
    assert!(fault("selftest_divergent", 64).contains("wait elsewhere"), "{}", fault("selftest_divergent", 64));
    assert!(fault("selftest_lane_left", 64).contains("have left"));
    assert!(fault("selftest_deadlock", 64).contains("wait elsewhere"));
    // 48 threads: the second warp is half full, but its masks name all 32 lanes.
    assert!(fault("selftest_lane_left", 48).contains("left or wait elsewhere"));
}

#[test]
fn launches_are_checked() {
    let dev = Device::sim(0);
    let mut y = zeros(&dev, 64);
    let launch = |y: &mut Tensor, name: &str, n: i32, threads: u32| {
        let k = dev.gpu().kernel(name, DType::F32).out(y).params(&n);
        // SAFETY: each of these is refused before it runs.
        unsafe { k.launch(Grid::blocks(1, threads)) }.unwrap_err().to_string()
    };
    let error = launch(&mut y, "selftest_write_at", 0, 64);
    assert!(error.contains("arguments of [8, 4] bytes, the kernel takes [8, 8]"), "{error}");
    assert!(launch(&mut y, "no_such", 0, 64).contains("no such kernel"));
    let k = dev.gpu().kernel("selftest_write_at", DType::F32).out(&mut y).params(&0i64);
    // SAFETY: refused before it runs.
    let error = unsafe { k.launch(Grid::blocks(1, 96)) }.unwrap_err().to_string();
    assert!(error.contains("blocks of 96 threads, the kernel takes at most 64"), "{error}");
    assert!(error.contains("f32[64]"), "it names the tensors: {error}");
}

/// Trains both stages of a recipe with the program, with all that a checkpoint holds, accumulated gradients and
/// evaluations: the weights equal the CPU's up to rounding, and a stopped run resumes on another device.
#[test]
fn train_runs_on_it() {
    let dir = folder_with_data();
    let recipe = write_recipe(dir.path(), &dir.path().join("data"));
    let short = [
        "--set",
        "stage.pretrain.steps=4",
        "--set",
        "stage.finetune.steps=3",
        "--set",
        "stage.pretrain.schedule.warmup_steps=1",
        "--set",
        "stage.finetune.schedule.warmup_steps=1",
    ];
    let run_on = |device: &str, name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let ran = train(&recipe, &out, &[&short[..], &["--device", device], more].concat()).done();
        (out, ran)
    };
    let (cpu, _) = run_on("cpu", "cpu", &[]);
    let (sim, said) = run_on("sim", "sim", &[]);
    assert!(said.err.contains("sim") || said.out.contains("sim"), "{said:?}");
    let weights = |run: &Path| {
        let bytes = std::fs::read(last(run)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut names = file.names().into_iter().filter(|n| n.starts_with("backbone.")).collect::<Vec<_>>();
        names.sort();
        let all = names.iter().flat_map(|n| bytemuck::pod_collect_to_vec::<u8, f32>(file.tensor(n).unwrap().data()));
        all.collect::<Vec<f32>>()
    };
    let distance = |a: &[f32], b: &[f32]| {
        let size = a.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        (a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / size).sqrt()
    };
    let want = weights(&cpu);
    // AdamW's first steps are signs of gradients, and rounding decides the sign of a gradient near 0.
    assert!(distance(&want, &weights(&sim)) < 2e-3, "{}", distance(&want, &weights(&sim)));
    let (stopped, _) = run_on("sim", "stopped", &["--stop-after", "5"]);
    run("train", ["--resume".as_ref(), stopped.as_os_str(), "--device".as_ref(), "cpu".as_ref()]).done();
    assert!(distance(&want, &weights(&stopped)) < 2e-3, "{}", distance(&want, &weights(&stopped)));
}
