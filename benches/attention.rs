//! Time of window attention at the stages of Swin-T, 2 images of 448², forward and backward, in the arena as in a
//! training step: `cargo bench --bench attention -- [--json FILE]`.
//!
//! The inputs are those of benches/peers/attention_torch.py, which measures PyTorch: same numbers from the same names,
//! so `checksum` must agree with its output.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use upres::cpu::use_threads;
use upres::device::Device;
use upres::ops::window_attention::{WindowAttention, window_attention};
use upres::tape::Tape;
use upres::tensor::Tensor;
use upres::{Error, Result};

const IMAGES: usize = 2;
const WINDOW: usize = 7;
/// Side of the map, channels, heads.
const STAGES: [(usize, usize, usize); 4] = [(112, 96, 3), (56, 192, 6), (28, 384, 12), (14, 768, 24)];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let path = args.iter().position(|a| a == "--json").and_then(|i| args.get(i + 1));
    use_threads(0)?;
    let mut json = path.map(File::create).transpose()?;
    for (side, c, heads) in STAGES {
        for shift in [0, WINDOW / 2] {
            let how = WindowAttention { window: WINDOW, shift, heads };
            let name = format!("window_attention_{side}x{side}x{c}_shift{shift}");
            let (mut times, checksum) = measure(side, c, how)?;
            times.sort_by_key(|t| t[0] + t[1]);
            let ms = |t: Duration| (t.as_secs_f64() * 1e7).round() / 1e4;
            let [median, min] = [times[times.len() / 2], times[0]].map(|t| ms(t[0] + t[1]));
            let mut forward: Vec<f64> = times.iter().map(|t| ms(t[0])).collect();
            forward.sort_by(f64::total_cmp);
            let forward = forward[forward.len() / 2];
            let checksum = (checksum * 1e3).round() / 1e3;
            println!(
                "{name:<40} median {median:>8.3} ms  min {min:>8.3} ms  forward {forward:>8.3} ms  checksum {checksum}"
            );
            let line = json!({"bench": "ops", "name": name, "impl": "upres", "pass": "forward and backward",
                "median_ms": median, "min_ms": min, "forward_ms": forward, "reps": times.len(),
                "threads": rayon::current_num_threads(), "checksum": checksum});
            if let Some(f) = &mut json {
                writeln!(f, "{line}").map_err(|e| Error::io("--json", e))?;
            }
        }
    }
    Ok(())
}

/// The i-th number of a name, in (-1, 1): the rule of tests/fixtures/README.md.
fn hash_uniform(name: &str, n: usize) -> Vec<f32> {
    let h = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    let number = |i: u64| {
        let mut z = h.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (2.0 * (z >> 40) as f64 + 1.0 - 16_777_216.0) as f32 / 16_777_216.0
    };
    (1..=n as u64).map(number).collect()
}

/// Repeats forward and backward in the CPU's arena for at least two seconds; their times, and Σ dqkv u("check").
fn measure(side: usize, c: usize, how: WindowAttention) -> Result<(Vec<[Duration; 2]>, f64)> {
    let pixels = IMAGES * side * side;
    let x = hash_uniform(&format!("bench.attention.qkv.{side}"), pixels * 3 * c);
    let table = hash_uniform("bench.attention.table", (2 * WINDOW - 1).pow(2) * how.heads);
    let dy = hash_uniform(&format!("bench.attention.dy.{side}"), pixels * c);
    let check = hash_uniform("check", x.len());
    let inputs = |dev: &Device| -> Result<[Tensor; 4]> {
        Ok([
            Tensor::from_slice(dev, &[IMAGES, side, side, 3 * c], &x)?,
            Tensor::from_slice(dev, &[3 * c], &vec![0.0; 3 * c])?,
            Tensor::from_slice(dev, &[table.len() / how.heads, how.heads], &table)?,
            Tensor::from_slice(dev, &[IMAGES, side, side, c], &dy)?,
        ])
    };
    let step = |dev: &Device, [x, bias, table, dy]: &[Tensor; 4]| -> Result<([Duration; 2], f64)> {
        let mut tape = Tape::new(dev);
        let [x, bias, table] = [x, bias, table].map(|t| tape.leaf(t.clone()));
        let start = Instant::now();
        let y = window_attention(&mut tape, &x, &bias, &table, how)?;
        let forward = start.elapsed();
        let start = Instant::now();
        let grads = tape.backward(vec![(y, dy.clone())])?;
        let backward = start.elapsed();
        let dx = grads.get(&x).expect("dqkv");
        let dx: &[f32] = if dev.has_data() { dx.f32s() } else { &[] };
        Ok(([forward, backward], dx.iter().zip(&check).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()))
    };
    let traced = Device::plan();
    let on_plan = inputs(&traced)?;
    let (_, plan) = traced.step(None, || step(&traced, &on_plan))?;
    let cpu = Device::cpu();
    let on_cpu = inputs(&cpu)?;
    let (mut times, mut sum) = (Vec::new(), 0.0);
    let start = Instant::now();
    while times.len() < 13 || start.elapsed() < Duration::from_secs(2) {
        let ((time, value), _) = cpu.step(Some(&plan), || step(&cpu, &on_cpu))?;
        times.push(time);
        sum = value;
    }
    Ok((times.split_off(2), sum))
}
