//! Time of layer norm, GELU, drop path and space-to-depth, in the arena as in a training step, beside
//! benches/peers/layers_torch.py and a copy of as many bytes: `cargo bench --bench layers -- [--json FILE]`.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use upres::cpu::use_threads;
use upres::device::Device;
use upres::ops::drop_path::drop_path;
use upres::ops::gelu::gelu;
use upres::ops::layer_norm::layer_norm;
use upres::ops::space_to_depth::space_to_depth;
use upres::philox::{Purpose, Stream};
use upres::tape::{Param, Role, Tape, Var};
use upres::tensor::elementwise::copy;
use upres::tensor::{DType, Tensor};
use upres::{Error, Result};

/// One op of a model, on its input and the rest of what it needs.
type Forward = fn(&mut Tape, &Var, &More) -> Result<Var>;

struct More {
    gamma: Param,
    beta: Param,
    branch: Tensor,
    key: Tensor,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let json = args.iter().position(|a| a == "--json").and_then(|i| args.get(i + 1));
    let mut json = json.map(File::create).transpose()?;
    use_threads(0)?;
    let norm: Forward = |tape, x, more| {
        let (gamma, beta) = (tape.param(&more.gamma), tape.param(&more.beta));
        layer_norm(tape, x, &gamma, &beta, 1e-5)
    };
    let activation: Forward = |tape, x, _| gelu(tape, x);
    let residual: Forward = |tape, x, more| {
        let branch = tape.leaf(more.branch.clone());
        drop_path(tape, x, &branch, 0.2, 3, Some(&more.key))
    };
    let merge: Forward = |tape, x, _| space_to_depth(tape, x, 2);
    let patches: Forward = |tape, x, _| space_to_depth(tape, x, 4);
    // A Swin-T on 8 images of 224 pixels, or 2 of 448.
    for (name, shape, op) in [
        ("layer_norm", &[25_088, 96][..], norm),
        ("layer_norm", &[6_272, 192], norm),
        ("layer_norm", &[1_568, 384], norm),
        ("layer_norm", &[392, 3_072], norm),
        ("gelu", &[25_088, 384], activation),
        ("gelu", &[6_272, 768], activation),
        ("drop_path", &[2, 112, 112, 96], residual),
        ("space_to_depth", &[2, 112, 112, 96], merge),
        ("space_to_depth", &[2, 448, 448, 3], patches),
    ] {
        let [mut forward, mut backward] = measure(shape, op)?;
        let mut copies = measure_copy(shape)?;
        let name = format!("{name}_{}", shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x"));
        for (pass, times) in [("forward", &mut forward), ("backward", &mut backward), ("copy", &mut copies)] {
            times.sort();
            let ms = |t: Duration| (t.as_secs_f64() * 1e7).round() / 1e4;
            let (median, min) = (ms(times[times.len() / 2]), ms(times[0]));
            println!("{name:<32} {pass:<9} median {median:>8.3} ms  min {min:>8.3} ms");
            let line = json!({"bench": "layers", "name": name, "pass": pass, "impl": "upres", "median_ms": median, "min_ms": min,
                "reps": times.len(), "threads": rayon::current_num_threads()});
            if let Some(f) = &mut json {
                writeln!(f, "{line}").map_err(|e| Error::io("--json", e))?;
            }
        }
    }
    Ok(())
}

fn uniform(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = Stream::new(seed, 0, 0, 0, Purpose::Test).rng();
    (0..n).map(|_| rng.range(-2.0, 2.0)).collect()
}

/// Plans a step on the plan device, then repeats it in the CPU's arena for a second.
fn repeat<R>(make: impl Fn(&Device) -> Result<Box<dyn Fn() -> Result<R>>>) -> Result<Vec<R>> {
    let traced = Device::plan();
    let on_plan = make(&traced)?;
    let (_, plan) = traced.step(None, on_plan)?;
    let cpu = Device::cpu();
    let on_cpu = make(&cpu)?;
    let (mut out, start) = (Vec::new(), Instant::now());
    while out.len() < 20 || start.elapsed() < Duration::from_secs(1) {
        out.push(cpu.step(Some(&plan), &on_cpu)?.0);
    }
    Ok(out.split_off(3))
}

/// Forward and backward passes.
fn measure(shape: &'static [usize], op: Forward) -> Result<[Vec<Duration>; 2]> {
    let times = repeat(|dev| {
        let (n, c) = (shape.iter().product(), *shape.last().expect("a dimension"));
        let x = Tensor::from_slice(dev, shape, &uniform(1, n))?;
        let param = |name, value: f32| -> Result<Param> {
            let p = Param::new(name, Role::Norm, Tensor::from_slice(dev, &[c], &vec![value; c])?);
            p.set_grad(Some(Tensor::zeros(dev, &[c], DType::F32)?))?;
            Ok(p)
        };
        let more = More {
            gamma: param("gamma", 1.1)?,
            beta: param("beta", 0.1)?,
            branch: Tensor::from_slice(dev, shape, &uniform(2, n))?,
            key: Tensor::from_slice(dev, &[6], &[1i32, 2, 0, 3, 0, 0])?,
        };
        let dev = dev.clone();
        let y_shape =
            op(&mut Tape::inference(&dev), &Tape::inference(&dev).constant(x.clone()), &more)?.shape().to_vec();
        let dy = Tensor::from_slice(&dev, &y_shape, &uniform(3, y_shape.iter().product()))?;
        Ok(Box::new(move || {
            let mut tape = Tape::new(&dev);
            let x = tape.leaf(x.clone());
            let start = Instant::now();
            let y = op(&mut tape, &x, &more)?;
            let forward = start.elapsed();
            let start = Instant::now();
            tape.backward(vec![(y, dy.clone())])?;
            Ok((forward, start.elapsed()))
        }) as Box<dyn Fn() -> Result<(Duration, Duration)>>)
    })?;
    let (forward, backward) = times.into_iter().unzip();
    Ok([forward, backward])
}

fn measure_copy(shape: &'static [usize]) -> Result<Vec<Duration>> {
    repeat(|dev| {
        let (x, dev) = (Tensor::zeros(dev, shape, DType::F32)?, dev.clone());
        Ok(Box::new(move || {
            let mut y = Tensor::empty(&dev, shape, DType::F32)?;
            let start = Instant::now();
            copy(&mut y, &x)?;
            Ok(start.elapsed())
        }) as Box<dyn Fn() -> Result<Duration>>)
    })
}
