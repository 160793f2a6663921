//! Time and bandwidth of the ops on a GPU: `cargo bench --features cuda --bench gpu -- [--device cuda:N] [--json
//! FILE]`.
//!
//! Each op runs as in training: a planned step, recorded, replayed. Times are of the device, over all replays; the op
//! runs on several sets of inputs in turn, more than the L2 cache holds. `bytes` is the least that the op must move
//! (each input read once, each output written once; batch norm in training must read its input twice), and the share is
//! of what a large copy reaches in the same run. benches/peers/gpu_ops_torch.py measures torch and torchvision on the
//! same sizes. `--device sim --small` rehearses on the simulated device; its times mean nothing.

use std::io::Write;
use std::time::Instant;

use serde_json::json;
use upres::cpu::use_threads;
use upres::device::Device;
use upres::device::Recording;
use upres::device::choice::DeviceChoice;
use upres::ops::adamw::{AdamWParam, AdamWRule, adamw};
use upres::ops::batch_norm_relu::{BatchNormRelu, BnMode, batch_norm_relu};
use upres::ops::grad_norm::grad_norm;
use upres::ops::image_normalize::image_normalize;
use upres::ops::max_pool::max_pool;
use upres::ops::nms::{Nms, nms};
use upres::ops::roi_align::{RoiAlign, roi_align};
use upres::ops::sgd::{SgdParam, sgd};
use upres::ops::top_k::top_k;
use upres::ops::upsample_add::upsample_add;
use upres::philox;
use upres::philox::{Purpose, Stream};
use upres::tape::{Param, Role, Tape};
use upres::tensor::DType;
use upres::tensor::Tensor;
use upres::tensor::elementwise;
use upres::{Error, Result};

/// Bytes of all sets of inputs together: several times the L2 cache of any GPU.
const FLUSH_BYTES: usize = 512 << 20;

struct Bench {
    device: Device,
    small: bool,
    filter: Option<String>,
    json: Option<std::fs::File>,
    copy_gb_s: f64,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let choice: DeviceChoice = value("--device").unwrap_or("cuda".into()).parse().map_err(anyhow::Error::msg)?;
    use_threads(0)?;
    let mut bench = Bench {
        device: choice.open()?,
        small: args.iter().any(|a| a == "--small"),
        filter: value("--only"),
        json: value("--json").map(std::fs::File::create).transpose()?,
        copy_gb_s: 0.0,
    };
    bench.memory()?;
    bench.batch_norm()?;
    bench.maps()?;
    bench.optimizers()?;
    bench.detection()?;
    Ok(())
}

/// Numbers in [-1, 1), the same in every run.
fn uniform(dev: &Device, shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut r = Stream::new(seed, 0, 0, 0, Purpose::Test).rng();
    let n = shape.iter().product();
    let values: Vec<f32> = if dev.has_data() { (0..n).map(|_| r.range(-1.0, 1.0)).collect() } else { vec![0.0; n] };
    Tensor::from_slice(dev, shape, &values)
}

impl Bench {
    /// Times `run` on inputs that `make` makes: on as many sets as fill FLUSH_BYTES, in turn.
    fn time<I>(
        &mut self,
        name: &str,
        bytes: usize,
        make: impl Fn(&Device) -> Result<I>,
        run: impl Fn(&Device, &mut I) -> Result<()>,
    ) -> Result<f64> {
        if self.filter.as_ref().is_some_and(|f| !name.contains(f.as_str()) && name != "copy") {
            return Ok(0.0);
        }
        let sets = if self.small { 1 } else { (FLUSH_BYTES / bytes.max(1)).clamp(1, 64) };
        let planner = self.device.planner();
        let mut on_plan = make(&planner)?;
        let ((), plan) = planner.step(None, || run(&planner, &mut on_plan))?;
        let device = self.device.clone();
        device.reserve_arena(plan.peak_bytes())?;
        let mut inputs = (0..sets).map(|_| make(&device)).collect::<Result<Vec<I>>>()?;
        let mut recordings: Vec<Recording> = (0..sets).map(|_| Recording::default()).collect();
        let mut all = |times: usize| -> Result<()> {
            for _ in 0..times {
                for (input, recording) in inputs.iter_mut().zip(&mut recordings) {
                    device.repeat(recording, Some(&plan), || run(&device, input))?;
                }
            }
            device.gpu().synchronize()
        };
        all(3)?;
        let start = Instant::now();
        all(1)?;
        let once = start.elapsed().as_secs_f64().max(1e-6);
        let times = if self.small { 1 } else { ((0.2 / once) as usize).clamp(1, 200) };
        let mut samples = Vec::new();
        for _ in 0..if self.small { 1 } else { 7 } {
            let start = Instant::now();
            all(times)?;
            samples.push(start.elapsed().as_secs_f64() / (times * sets) as f64);
        }
        samples.sort_by(f64::total_cmp);
        let seconds = samples[samples.len() / 2];
        let gb_s = bytes as f64 / seconds / 1e9;
        let share = if self.copy_gb_s > 0.0 { gb_s / self.copy_gb_s } else { 1.0 };
        println!("{name:<44} {:>10.1} us {gb_s:>8.1} GB/s {:>6.1} % of a copy", seconds * 1e6, share * 100.0);
        if let Some(file) = &mut self.json {
            let line = json!({"bench": "gpu_ops", "impl": "upres", "name": name, "median_us": seconds * 1e6, "min_us": samples[0] * 1e6,
                "bytes": bytes, "gb_s": gb_s, "copy_share": share, "sets": sets, "device": format!("{:?}", self.device)});
            writeln!(file, "{line}").map_err(|e| Error::io("--json", e))?;
        }
        Ok(gb_s)
    }

    /// `full`, or `small` in a rehearsal.
    fn size<T>(&self, full: T, small: T) -> T {
        if self.small { small } else { full }
    }

    fn memory(&mut self) -> Result<()> {
        let n = self.size(64 << 20, 1 << 10);
        let pair = |dev: &Device| Ok((uniform(dev, &[n], 1)?, uniform(dev, &[n], 2)?));
        self.copy_gb_s = self.time("copy", 8 * n, pair, |_, (y, x)| elementwise::copy(y, x))?;
        self.time("add_assign", 12 * n, pair, |_, (y, x)| elementwise::add_assign(y, x))?;
        self.time("fill", 4 * n, pair, |_, (y, _)| elementwise::fill(y, 1.0))?;
        Ok(())
    }

    fn batch_norm(&mut self) -> Result<()> {
        let full = [
            [8, 224, 224, 64],
            [8, 112, 112, 64],
            [8, 112, 112, 256],
            [8, 56, 56, 512],
            [8, 28, 28, 1024],
            [8, 14, 14, 2048],
        ];
        let shapes = self.size(full.to_vec(), vec![[2, 5, 7, 64]]);
        for shape in shapes {
            for dtype in [DType::F32, DType::F16] {
                self.batch_norm_of(shape, dtype)?;
            }
        }
        Ok(())
    }

    fn batch_norm_of(&mut self, shape: [usize; 4], dtype: DType) -> Result<()> {
        let (c, bytes) = (shape[3], shape.iter().product::<usize>() * dtype.bytes());
        let title =
            |what: &str| format!("batch_norm_relu {what} {}x{}x{}x{c} {}", shape[0], shape[1], shape[2], dtype.name());
        struct Inputs {
            x: Tensor,
            dy: Tensor,
            gamma: Tensor,
            beta: Tensor,
            running: (Param, Param),
        }
        let make = |dev: &Device| -> Result<Inputs> {
            let half = |seed: u64| -> Result<Tensor> {
                let x = uniform(dev, &shape, seed)?;
                if dtype == DType::F32 {
                    return Ok(x);
                }
                let halves: Vec<half::f16> = if dev.has_data() {
                    x.to_vec::<f32>()?.into_iter().map(half::f16::from_f32).collect()
                } else {
                    vec![half::f16::ZERO; x.numel()]
                };
                Tensor::from_slice(dev, &shape, &halves)
            };
            let ones = || Tensor::from_slice(dev, &[c], &vec![1.0f32; c]);
            Ok(Inputs {
                x: half(1)?,
                dy: half(2)?,
                gamma: ones()?,
                beta: ones()?,
                running: (Param::new("mean", Role::Statistic, ones()?), Param::new("var", Role::Statistic, ones()?)),
            })
        };
        let forward = |tape: &mut Tape, i: &Inputs, mode: BnMode| {
            let (x, gamma, beta) = (tape.leaf(i.x.clone()), tape.leaf(i.gamma.clone()), tape.leaf(i.beta.clone()));
            let (mean, var) = (&i.running.0, &i.running.1);
            let op =
                BatchNormRelu { gamma: &gamma, beta: &beta, mean, var, mode, eps: 1e-5, residual: None, relu: true };
            batch_norm_relu(tape, &x, op)
        };
        let train = BnMode::Train { momentum: 0.1 };
        self.time(&title("train fwd"), 3 * bytes, make, |dev, i| {
            forward(&mut Tape::inference(dev), i, train).map(drop)
        })?;
        // Forward: x twice, y. Backward: dy, x, y twice, dx.
        self.time(&title("train fwd+bwd"), 10 * bytes, make, |dev, i| {
            let mut tape = Tape::new(dev);
            let y = forward(&mut tape, i, train)?;
            tape.backward(vec![(y, i.dy.clone())]).map(drop)
        })?;
        self.time(&title("frozen fwd"), 2 * bytes, make, |dev, i| {
            forward(&mut Tape::inference(dev), i, BnMode::Frozen).map(drop)
        })?;
        Ok(())
    }

    fn maps(&mut self) -> Result<()> {
        let [n, h, w, c] = self.size([8, 112, 112, 256], [1, 4, 6, 8]);
        let map = n * h * w * c * 4;
        let make = |dev: &Device| Ok((uniform(dev, &[n, h / 2, w / 2, c], 1)?, uniform(dev, &[n, h, w, c], 2)?));
        self.time("upsample_add fwd", 2 * map + map / 4, make, |dev, (top, lateral)| {
            let mut tape = Tape::inference(dev);
            let (top, lateral) = (tape.constant(top.clone()), tape.constant(lateral.clone()));
            upsample_add(&mut tape, &top, &lateral).map(drop)
        })?;
        let [n, h, w, c] = self.size([8, 224, 224, 64], [1, 6, 8, 8]);
        let map = n * h * w * c * 4;
        self.time(
            "max_pool fwd",
            map + map / 4,
            |dev| uniform(dev, &[n, h, w, c], 1),
            |dev, x| {
                let mut tape = Tape::inference(dev);
                let x = tape.constant(x.clone());
                max_pool(&mut tape, &x, 3, 2, 1).map(drop)
            },
        )?;
        let [n, h, w] = self.size([8, 448, 448], [1, 8, 8]);
        let make = |dev: &Device| {
            let sizes: Vec<f32> = (0..n).flat_map(|_| [h as f32, w as f32, h as f32, w as f32]).collect();
            Ok((Tensor::zeros(dev, &[n, h, w, 3], DType::U8)?, Tensor::from_slice(dev, &[n, 4], &sizes)?))
        };
        self.time("image_normalize", n * h * w * 15, make, |dev, (x, sizes)| {
            image_normalize(
                &mut Tape::inference(dev),
                x,
                sizes,
                [123.675, 116.28, 103.53],
                [58.395, 57.12, 57.375],
                DType::F32,
            )
            .map(drop)
        })?;
        Ok(())
    }

    /// Parameters of about R50-FPN's number and sizes.
    fn optimizers(&mut self) -> Result<()> {
        let sizes: Vec<usize> = if self.small {
            vec![64, 1000, 3]
        } else {
            let blocks = (0..53).flat_map(|i| [64 * 64 * (1 + i % 9) * 4, 256, 256]);
            blocks.chain([12_845_056, 1024, 1_048_576, 1024, 331_776, 81 * 5]).collect()
        };
        let total: usize = sizes.iter().sum();
        let shapes: Vec<Vec<usize>> = sizes.iter().map(|&n| vec![n]).collect();
        let flat = |dev: &Device| Tensor::flat(dev, &shapes, DType::F32);
        let scalar = |dev: &Device, v: f32| Tensor::from_slice(dev, &[1], &[v]);
        for (names, state) in [(["sgd", "adamw"], DType::F32), (["sgd, bf16 state", "adamw, bf16 state"], DType::BF16)]
        {
            let zeros = |dev: &Device| Tensor::flat(dev, &shapes, state);
            let make = |dev: &Device| {
                let correction = Tensor::from_slice(dev, &[2], &[0.1f32, 0.001])?;
                let key = Tensor::from_slice(dev, &[6], &philox::key(1, 0, 1, 0))?;
                let scalars = vec![scalar(dev, 0.1)?, scalar(dev, 1.0)?, correction, key];
                Ok([flat(dev)?, flat(dev)?, zeros(dev)?, zeros(dev)?, scalars])
            };
            let bytes = 2 * state.bytes(); // read and written
            self.time(names[0], (12 + bytes) * total, make, |_, [values, grads, momenta, _, s]| {
                let each = values.iter_mut().zip(&*grads).zip(momenta);
                let row = |((value, grad), momentum)| SgdParam { value, grad, momentum, weight_decay: 1e-4 };
                sgd(&mut each.map(row).collect::<Vec<_>>(), &s[0], &s[1], 0.9, false, Some(&s[3]))
            })?;
            self.time(names[1], (12 + 2 * bytes) * total, make, |_, [values, grads, means, squares, s]| {
                let each = values.iter_mut().zip(&*grads).zip(means).zip(squares);
                let mut params: Vec<_> = each
                    .map(|(((value, grad), mean), square)| AdamWParam { value, grad, mean, square, weight_decay: 0.05 })
                    .collect();
                let rule = AdamWRule { betas: [0.9, 0.999], eps: 1e-8 };
                adamw(&mut params, &s[0], &s[1], &s[2], rule, Some(&s[3]))
            })?;
        }
        self.time("grad_norm", 4 * total, flat, |dev, grads| {
            grad_norm(dev, &grads.iter().collect::<Vec<_>>()).map(drop)
        })?;
        Ok(())
    }

    fn detection(&mut self) -> Result<()> {
        let (images, rois, c) = self.size((2, 512, 256), (1, 8, 8));
        let sides: Vec<[usize; 2]> =
            self.size(vec![[200, 272], [100, 136], [50, 68], [25, 34]], vec![[16, 16], [8, 8], [4, 4], [2, 2]]);
        let extent = (4 * sides[0][1]) as f32;
        let make = |dev: &Device| {
            let levels =
                sides.iter().map(|[h, w]| uniform(dev, &[images, *h, *w, c], 3)).collect::<Result<Vec<_>>>()?;
            let mut r = Stream::new(9, 0, 0, 0, Purpose::Test).rng();
            let mut boxes = Vec::new();
            for _ in 0..images * rois {
                // Sides of 16 to 400 pixels, evenly in their logarithm: all levels are met.
                let (w, h) = (16.0 * 25f32.powf(r.uniform()), 16.0 * 25f32.powf(r.uniform()));
                let (x, y) = (r.range(0.0, extent - 16.0), r.range(0.0, 0.7 * extent));
                boxes.extend([x, y, (x + w).min(extent), y + h]);
            }
            let boxes = Tensor::from_slice(dev, &[images, rois, 4], &boxes)?;
            let valid = Tensor::from_slice(dev, &[images, rois], &vec![0i32; images * rois])?;
            let dy = uniform(dev, &[images * rois, 7, 7, c], 4)?;
            Ok((levels, boxes, valid, dy))
        };
        let (p, strides) = (RoiAlign::new(7, 7), [4.0, 8.0, 16.0, 32.0]);
        let out = images * rois * 49 * c * 4;
        let maps: usize = sides.iter().map(|[h, w]| images * h * w * c * 4).sum();
        self.time("roi_align fwd 7x7", out, make, |dev, (levels, boxes, valid, _)| {
            let mut tape = Tape::inference(dev);
            let xs: Vec<_> = levels.iter().map(|x| tape.constant(x.clone())).collect();
            let xs: Vec<_> = xs.iter().collect();
            roi_align(&mut tape, &xs, &strides, boxes, valid, p).map(drop)
        })?;
        self.time("roi_align fwd+bwd 7x7", 2 * out + maps, make, |dev, (levels, boxes, valid, dy)| {
            let mut tape = Tape::new(dev);
            let xs: Vec<_> = levels.iter().map(|x| tape.leaf(x.clone())).collect();
            let xs: Vec<_> = xs.iter().collect();
            let y = roi_align(&mut tape, &xs, &strides, boxes, valid, p)?;
            tape.backward(vec![(y, dy.clone())]).map(drop)
        })?;
        let (images, n) = self.size((8, 2000), (2, 64));
        let make = |dev: &Device| {
            let mut r = Stream::new(5, 0, 0, 0, Purpose::Test).rng();
            let mut boxes = Vec::new();
            for _ in 0..images * 5 * n {
                let (x, y, w, h) = (r.range(0.0, 400.0), r.range(0.0, 400.0), r.range(8.0, 80.0), r.range(8.0, 80.0));
                boxes.extend([x, y, x + w, y + h]);
            }
            let group: Vec<i32> = (0..images * 5 * n).map(|i| (i / n % 5) as i32).collect();
            let scores = uniform(dev, &[images, 5 * n], 6)?;
            Ok((
                Tensor::from_slice(dev, &[images, 5 * n, 4], &boxes)?,
                scores,
                Tensor::from_slice(dev, &[images, 5 * n], &group)?,
            ))
        };
        self.time(&format!("nms {images}x5x{n}"), images * 5 * n * 24, make, |_, (boxes, scores, group)| {
            let p = Nms { iou_threshold: 0.7, groups: 5, max_out: 1000, offset: false };
            nms(boxes, scores, group, p).map(drop)
        })?;
        let segments = self.size(vec![163_200, 40_800, 10_200, 2_550, 663], vec![200, 50]);
        let total: usize = segments.iter().sum();
        let mut at = 0;
        let segments: Vec<(usize, usize, usize)> = segments
            .iter()
            .map(|&len| {
                at += len;
                (at - len, len, len.min(2000))
            })
            .collect();
        self.time(
            "top_k 8 images, 5 levels, 2000",
            8 * total * 4,
            |dev| uniform(dev, &[8, total], 7),
            |_, scores| top_k(scores, &segments).map(drop),
        )?;
        Ok(())
    }
}
