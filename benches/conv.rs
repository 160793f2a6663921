//! Speed of the convolutions of ResNet-50-FPN at 2 x 448 x 448 (benches/conv_shapes.json), pass by pass.
//!
//! `cargo bench --bench conv -- [--filter TEXT] [--threads N] [--seconds S] [--json FILE] [--cpu-time]` `--cpu-time`
//! (Linux) runs one thread and gives the mean of the time that it was on the CPU: for machines with other work. Each
//! time is the best of many repetitions; GFLOP/s are those of the direct algorithm. The sums weigh each shape with its
//! count (0: narrow networks, not in the sums), and leave out the gradient of the image (the data gradient of the
//! stem), which no training step computes.

use serde::{Deserialize, Serialize};
use std::io::Write;
use std::time::Instant;
use upres::ops::conv2d::cpu::{self, ConvShape};

#[derive(Deserialize)]
struct Entry {
    name: String,
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    o: usize,
    k: usize,
    stride: usize,
    pad: usize,
    count: usize,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    pass: &'a str,
    count: usize,
    ms: f64,
    gflops: f64,
    workspace_mb: f64,
}

const PASSES: [&str; 3] = ["forward", "backward_data", "backward_weights"];

/// Best time in seconds: at least `min_reps` runs, for about `seconds`.
fn best(seconds: f64, min_reps: usize, mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut reps, mut best) = (Instant::now(), 0, f64::INFINITY);
    while reps < min_reps || start.elapsed().as_secs_f64() < seconds {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed().as_secs_f64());
        reps += 1;
    }
    best
}

/// Mean time on the CPU of this thread, in seconds, over about `seconds` (the kernel counts it in ticks of some ms).
fn mean_cpu(seconds: f64, mut f: impl FnMut()) -> f64 {
    let on_cpu = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        text.split(' ').next().and_then(|t| t.parse::<f64>().ok()).expect("/proc/thread-self/schedstat") * 1e-9
    };
    f();
    let (start, begin, mut reps) = (Instant::now(), on_cpu(), 0);
    while reps < 3 || start.elapsed().as_secs_f64() < seconds {
        f();
        reps += 1;
    }
    (on_cpu() - begin) / reps as f64
}

/// A buffer that starts at a cache line, as the tensors of the library do.
struct Buffer(Vec<f32>, usize);

impl Buffer {
    fn new(n: usize) -> Buffer {
        let data = vec![0f32; n + 15];
        let skip = data.as_ptr().align_offset(64);
        Buffer(data, skip)
    }
    fn get(&mut self) -> &mut [f32] {
        let n = self.0.len() - 15;
        &mut self.0[self.1..self.1 + n]
    }
}

fn noise(n: usize, seed: u32) -> Buffer {
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    let mut buffer = Buffer::new(n);
    buffer.get().fill_with(|| {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    });
    buffer
}

fn main() -> anyhow::Result<()> {
    let (mut filter, mut json, mut seconds, mut threads, mut cpu_time) = (String::new(), None, 0.2, 0, false);
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        let mut value = || args.next().ok_or_else(|| anyhow::anyhow!("{a}: a value is missing"));
        match a.as_str() {
            "--filter" => filter = value()?,
            "--json" => json = Some(std::fs::File::create(value()?)?),
            "--seconds" => seconds = value()?.parse()?,
            "--threads" => threads = value()?.parse()?,
            "--cpu-time" => (cpu_time, threads) = (true, 1),
            "--bench" => {} // cargo bench passes it
            _ => anyhow::bail!("unknown argument {a}"),
        }
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(|| run(&filter, seconds, cpu_time, json))
}

fn run(filter: &str, seconds: f64, cpu_time: bool, mut json: Option<std::fs::File>) -> anyhow::Result<()> {
    let entries: Vec<Entry> = serde_json::from_str(&std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/benches/conv_shapes.json"
    ))?)?;
    println!(
        "{} threads; {} per call: ms (GFLOP/s)",
        rayon::current_num_threads(),
        if cpu_time { "mean time on the CPU" } else { "best time" }
    );
    println!(
        "{:22} {:>3} {:>18} {:>18} {:>18} {:>8}",
        "shape", "x", "forward", "backward data", "backward weights", "MB"
    );
    let mut sums = [(0f64, 0f64); 3];
    for e in entries.iter().filter(|e| e.name.contains(filter)) {
        let s = ConvShape { n: e.n, h: e.h, w: e.w, c: e.c, o: e.o, kh: e.k, kw: e.k, stride: e.stride, pad: e.pad };
        let (mut x, mut w, mut dy) = (noise(s.x_len(), 1), noise(s.w_len(), 2), noise(s.y_len(), 3));
        let (x, w, dy) = (&*x.get(), &*w.get(), &*dy.get());
        let (mut y, mut dx, mut dw) = (Buffer::new(s.y_len()), Buffer::new(s.x_len()), Buffer::new(s.w_len()));
        let (y, dx, dw) = (y.get(), dx.get(), dw.get());
        let sizes = [cpu::forward_workspace(&s), cpu::backward_data_workspace(&s), cpu::backward_weights_workspace(&s)];
        let mut ws = vec![0f32; sizes.into_iter().max().unwrap_or(0)];
        let time = |f: &mut dyn FnMut()| if cpu_time { mean_cpu(seconds, f) } else { best(seconds, 5, f) };
        let times = [
            time(&mut || cpu::forward(y, x, w, None, false, &mut ws, &s)),
            time(&mut || cpu::backward_data(dx, dy, w, &mut ws, &s)),
            time(&mut || cpu::backward_weights(dw, false, x, dy, &mut ws, &s)),
        ];
        print!("{:22} {:>3}", e.name, e.count);
        for (i, &t) in times.iter().enumerate() {
            let gflops = s.flops() / t / 1e9;
            print!(" {:10.3} ({gflops:5.0})", t * 1e3);
            if e.name != "stem" || i != 1 {
                sums[i].0 += t * e.count as f64;
                sums[i].1 += s.flops() * e.count as f64;
            }
            if let Some(f) = &mut json {
                let workspace_mb = sizes[i] as f64 * 4e-6;
                let line = Line { name: &e.name, pass: PASSES[i], count: e.count, ms: t * 1e3, gflops, workspace_mb };
                writeln!(f, "{}", serde_json::to_string(&line)?)?;
            }
        }
        println!(" {:8.1}", sizes.iter().max().map_or(0.0, |&n| n as f64 * 4e-6));
    }
    let backward = (sums[1].0 + sums[2].0, sums[1].1 + sums[2].1);
    for (pass, (t, flops)) in PASSES.iter().zip(sums).chain([(&"backward", backward)]) {
        if t > 0.0 {
            println!("sum {pass}: {:.1} ms, {:.0} GFLOP/s", t * 1e3, flops / t / 1e9);
        }
    }
    Ok(())
}
