//! Time of RoIAlign, NMS and matching, in the arena as in a training step: `cargo bench --bench detection -- [--json
//! FILE]`.
//!
//! The inputs are those of benches/peers/ops_torch.py, which measures torchvision: same numbers from the same names, so
//! `checksum` and `kept` must agree with its output.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use upres::cpu::use_threads;
use upres::detection::anchors::Anchors;
use upres::device::Device;
use upres::models::config::RpnConfig;
use upres::ops::anchors_valid::anchors_valid;
use upres::ops::match_boxes::{Matcher, match_boxes};
use upres::ops::nms::{Nms, nms};
use upres::ops::roi_align::{RoiAlign, roi_align};
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};
use upres::{Error, Result};

const SIDE: f32 = 448.0;
const IMAGES: usize = 2;
const ROIS: usize = 512;
const C: usize = 256;
const STRIDES: [f32; 4] = [4.0, 8.0, 16.0, 32.0];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let json = args.iter().position(|a| a == "--json").and_then(|i| args.get(i + 1));
    use_threads(0)?;
    let mut out = Report { json: json.map(File::create).transpose()? };
    bench_nms(&mut out)?;
    bench_match_boxes(&mut out)?;
    bench_roi_align(&mut out)?;
    Ok(())
}

/// Prints a line for people and, if asked, one for machines.
struct Report {
    json: Option<File>,
}

impl Report {
    fn line(&mut self, name: &str, pass: Option<&str>, mut times: Vec<Duration>, more: &[(&str, f64)]) -> Result<()> {
        times.sort();
        let ms = |t: Duration| (t.as_secs_f64() * 1e7).round() / 1e4;
        let (median, min, reps) = (ms(times[times.len() / 2]), ms(times[0]), times.len());
        let mut line = json!({"bench": "ops", "name": name, "impl": "upres", "median_ms": median, "min_ms": min,
            "reps": reps, "threads": rayon::current_num_threads()});
        if let Some(pass) = pass {
            line["pass"] = json!(pass);
        }
        let mut notes = String::new();
        for (key, value) in more {
            line[key] = json!(value);
            notes += &format!("  {key} {value}");
        }
        println!("{name:<40} {:<8} median {median:>9.3} ms  min {min:>9.3} ms{notes}", pass.unwrap_or(""));
        if let Some(f) = &mut self.json {
            writeln!(f, "{line}").map_err(|e| Error::io("--json", e))?;
        }
        Ok(())
    }
}

/// A step to repeat: the time of its part that counts, and a number that shows what it did.
type Step = Box<dyn Fn() -> Result<(Duration, f64)>>;

/// Plans `step` on the plan device, then repeats it in the CPU's arena for at least two seconds.
fn measure(step: impl Fn(&Device) -> Result<Step>) -> Result<(Vec<Duration>, f64)> {
    let traced = Device::plan();
    let on_plan = step(&traced)?;
    let ((_, _), plan) = traced.step(None, &on_plan)?;
    let cpu = Device::cpu();
    let on_cpu = step(&cpu)?;
    let (mut times, mut check) = (Vec::new(), 0.0);
    let start = Instant::now();
    while times.len() < 11 || start.elapsed() < Duration::from_secs(2) {
        let ((time, value), _) = cpu.step(Some(&plan), &on_cpu)?;
        times.push(time);
        check = value;
    }
    Ok((times.split_off(2), check))
}

/// The i-th number of a name, in (-1, 1): the rule of tests/fixtures/README.md.
fn hash_uniform(name: &str) -> impl FnMut() -> f32 + use<> {
    let h = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    let mut i = 0u64;
    move || {
        i += 1;
        let mut z = h.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (2.0 * (z >> 40) as f64 + 1.0 - 16_777_216.0) as f32 / 16_777_216.0
    }
}

/// Σ x · u(name), with `x [N,H,W,C]` read in the order N C H W, as the other side does.
fn checksum(name: &str, x: &Tensor) -> f64 {
    if !x.device().has_data() {
        return 0.0;
    }
    let [n, h, w, c] = x.dims("checksum").expect("four dimensions");
    let (x, mut u) = (x.f32s(), hash_uniform(name));
    let mut sum = 0.0;
    for i in 0..n {
        for k in 0..c {
            for p in 0..h * w {
                sum += f64::from(x[(i * h * w + p) * c + k]) * f64::from(u());
            }
        }
    }
    sum
}

fn bench_nms(out: &mut Report) -> Result<()> {
    const LEVELS: usize = 5;
    const BOXES: usize = 2000;
    let (images, objects) = (8, 50);
    let (mut boxes, mut scores) = (Vec::new(), Vec::new());
    for b in 0..images {
        for l in 0..LEVELS {
            let mut u = hash_uniform(&format!("bench.nms.objects.{b}.{l}"));
            let v: Vec<[f32; 4]> = (0..objects).map(|_| [u(), u(), u(), u()]).collect();
            let mut u = hash_uniform(&format!("bench.nms.{b}.{l}"));
            let side = (32 << l) as f32;
            for i in 0..BOXES {
                let (v, r) = (v[i % objects], [u(), u(), u(), u(), u()]);
                let axis = |k: usize| {
                    let size = side * (1.25 + 0.75 * v[2 + k]);
                    let centre = SIDE / 2.0 * (1.0 + v[k]) + 0.15 * size * r[k];
                    let half = size * (1.0 + 0.2 * r[2 + k]) / 2.0;
                    [centre - half, centre + half].map(|e| e.clamp(0.0, SIDE))
                };
                let (x, y) = (axis(0), axis(1));
                boxes.extend([x[0], y[0], x[1], y[1]]);
                scores.push(r[4]);
            }
        }
    }
    let n = LEVELS * BOXES;
    let p = Nms { iou_threshold: 0.7, groups: LEVELS, max_out: n, offset: false };
    let kept = |keep: &[i32]| keep.iter().filter(|&&k| k >= 0).count() as f64;
    for (name, p) in [("nms_8x5x2000", p), ("nms_8x5x2000_top1000", Nms { max_out: 1000, ..p })] {
        let (times, kept) = measure(|dev| {
            let boxes = Tensor::from_slice(dev, &[images, n, 4], &boxes)?;
            let scores = Tensor::from_slice(dev, &[images, n], &scores)?;
            let level: Vec<i32> = (0..n).map(|i| (i / BOXES) as i32).collect();
            let level = Tensor::from_slice(dev, &[n], &level)?;
            Ok(Box::new(move || {
                let start = Instant::now();
                let keep = nms(&boxes, &scores, &level, p)?;
                let time = start.elapsed();
                Ok((time, if keep.device().has_data() { kept(keep.i32s()) } else { 0.0 }))
            }))
        })?;
        out.line(name, None, times, &[("kept", kept)])?;
    }
    Ok(())
}

/// The RPN's anchors of 8 images of 448² against 16 objects each, as training does it.
fn bench_match_boxes(out: &mut Report) -> Result<()> {
    const OBJECTS: usize = 16;
    let images = 8;
    let matcher = Matcher { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.3, low_quality: true };
    let mut gt = Vec::new();
    for b in 0..images {
        let mut u = hash_uniform(&format!("bench.match.{b}"));
        for _ in 0..OBJECTS {
            let u = [u(), u(), u(), u()];
            let (w, h) = (16.0 * 24f32.powf((1.0 + u[2]) / 2.0), 16.0 * 24f32.powf((1.0 + u[3]) / 2.0));
            let (x, y) = ((SIDE - w) * (1.0 + u[0]) / 2.0, (SIDE - h) * (1.0 + u[1]) / 2.0);
            gt.extend([x, y, x + w, y + h]);
        }
    }
    let (times, positive) = measure(|dev| {
        let anchors = Anchors::new(dev, &RpnConfig::default().anchors(), SIDE as usize, SIDE as usize)?;
        let sizes = Tensor::from_slice(dev, &[images, 4], &[SIDE; 4].repeat(images))?;
        let valid = anchors_valid(anchors.grid(), &sizes, -1.0)?;
        let gt = Tensor::from_slice(dev, &[images, OBJECTS, 4], &gt)?;
        let count = Tensor::from_slice(dev, &[images], &vec![OBJECTS as i32; images])?;
        Ok(Box::new(move || {
            let start = Instant::now();
            let assigned = match_boxes(&anchors.boxes, Some(&valid), &gt, &count, matcher)?;
            let time = start.elapsed();
            let positive = |a: &[i32]| a.iter().filter(|&&a| a > 0).count() as f64;
            Ok((time, if assigned.device().has_data() { positive(assigned.i32s()) } else { 0.0 }))
        }))
    })?;
    out.line("match_boxes_8x50085x16", None, times, &[("positive", positive)])
}

fn bench_roi_align(out: &mut Report) -> Result<()> {
    for side in [7, 14] {
        for (sampling_ratio, aligned) in [(0, true), (2, false)] {
            let p = RoiAlign { sampling_ratio, aligned, ..RoiAlign::new(side, side) };
            let name = format!("roi_align_1024_{side}x{side}_ratio{sampling_ratio}_aligned{}", u8::from(aligned));
            for backward in [false, true] {
                let (times, check) = measure(|dev| roi_step(dev, p, backward))?;
                let pass = if backward { "backward" } else { "forward" };
                out.line(&name, Some(pass), times, &[("checksum", (check * 1e4).round() / 1e4)])?;
            }
        }
    }
    Ok(())
}

fn roi_step(dev: &Device, p: RoiAlign, backward: bool) -> Result<Step> {
    let mut levels = Vec::new();
    for (l, stride) in STRIDES.iter().enumerate() {
        let side = (SIDE / stride) as usize;
        let mut u = hash_uniform(&format!("bench.roi.level{l}"));
        let x: Vec<f32> = (0..IMAGES * side * side * C).map(|_| u()).collect();
        levels.push(Tensor::from_slice(dev, &[IMAGES, side, side, C], &x)?);
    }
    let mut boxes = Vec::new();
    for image in 0..IMAGES {
        let mut u = hash_uniform(&format!("bench.roi.rois.{image}"));
        for _ in 0..ROIS {
            let u = [u(), u(), u(), u()];
            let (w, h) = (16.0 * 24f32.powf((1.0 + u[2]) / 2.0), 16.0 * 24f32.powf((1.0 + u[3]) / 2.0));
            let (x, y) = ((SIDE - w) * (1.0 + u[0]) / 2.0, (SIDE - h) * (1.0 + u[1]) / 2.0);
            boxes.extend([x, y, x + w, y + h]);
        }
    }
    let rois = Tensor::from_slice(dev, &[IMAGES, ROIS, 4], &boxes)?;
    let valid = Tensor::zeros(dev, &[IMAGES, ROIS], DType::I32)?;
    let dev = dev.clone();
    let ones = Tensor::from_slice(&dev, &[IMAGES * ROIS, p.ph, p.pw, C], &vec![1.0; IMAGES * ROIS * p.ph * p.pw * C])?;
    let check = Cell::new(f64::NAN);
    Ok(Box::new(move || {
        let mut tape = if backward { Tape::new(&dev) } else { Tape::inference(&dev) };
        let xs: Vec<_> = levels.iter().map(|x| tape.leaf(x.clone())).collect();
        let refs: Vec<_> = xs.iter().collect();
        let start = Instant::now();
        let y = roi_align(&mut tape, &refs, &STRIDES, &rois, &valid, p)?;
        let forward = start.elapsed();
        if !backward {
            if check.get().is_nan() {
                check.set(checksum("check", y.value()));
            }
            return Ok((forward, check.get()));
        }
        let start = Instant::now();
        let grads = tape.backward(vec![(y, ones.clone())])?;
        let time = start.elapsed();
        if check.get().is_nan() {
            let dx = |x| grads.get(x).expect("a gradient");
            check.set(xs.iter().enumerate().map(|(l, x)| checksum(&format!("check{l}"), dx(x))).sum());
        }
        Ok((time, check.get()))
    }))
}
