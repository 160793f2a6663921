//! Swin's shifted-window attention, against the definition and mmdetection.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::conv2d::{Activation, conv2d};
use upres::ops::window_attention::{WindowAttention, window_attention};
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

/// The tokens of each window: the pixel of a token, or None for padding, and the region the token comes from.
fn windows(p: &Problem) -> Vec<Vec<(Option<usize>, usize)>> {
    let WindowAttention { window, shift, .. } = p.how;
    let (hp, wp) = (p.h.div_ceil(window) * window, p.w.div_ceil(window) * window);
    // mmdetection's slices (0, -window), (-window, -shift), (-shift, None) of an axis.
    let slice = |i: usize, size: usize| match i {
        _ if shift == 0 || i < size - window => 0,
        _ if i < size - shift => 1,
        _ => 2,
    };
    let mut out = Vec::new();
    for n in 0..p.n {
        for (top, left) in (0..hp).step_by(window).flat_map(|top| (0..wp).step_by(window).map(move |left| (top, left)))
        {
            let token = |t: usize| {
                let (i, j) = (top + t / window, left + t % window);
                let (row, column) = ((i + shift) % hp, (j + shift) % wp);
                let real = row < p.h && column < p.w;
                (real.then(|| (n * p.h + row) * p.w + column), 3 * slice(i, hp) + slice(j, wp))
            };
            out.push((0..window * window).map(token).collect());
        }
    }
    out
}

/// y, dqkv, dtable, dqkv_bias.
fn definition(p: &Problem, qkv: &[f64], qkv_bias: &[f64], table: &[f64]) -> [Vec<f64>; 4] {
    let WindowAttention { window, heads, .. } = p.how;
    let (c, d, t) = (p.c, p.c / heads, window * window);
    let (scale, wide) = ((d as f64).powf(-0.5), 2 * window - 1);
    let (mut y, mut dqkv) = (vec![0.0; p.dy.len()], vec![0.0; qkv.len()]);
    let (mut dtable, mut dbias) = (vec![0.0; table.len()], vec![0.0; 3 * c]);
    for tokens in windows(p) {
        for head in 0..heads {
            let value = |j: usize, what: usize, k: usize| {
                let column = what * c + head * d + k;
                tokens[j].0.map_or(qkv_bias[column], |at| qkv[at * 3 * c + column])
            };
            let gradient = |j: usize, k: usize| tokens[j].0.map_or(0.0, |at| f64::from(p.dy[at * c + head * d + k]));
            for i in 0..t {
                let row = |j: usize| {
                    let [a, b] = [i / window + window - 1 - j / window, i % window + window - 1 - j % window];
                    (a * wide + b) * heads + head
                };
                let score = |j: usize| {
                    let dot: f64 = (0..d).map(|k| value(i, 0, k) * value(j, 1, k)).sum();
                    scale * dot + table[row(j)] + if tokens[i].1 == tokens[j].1 { 0.0 } else { -100.0 }
                };
                let scores: Vec<f64> = (0..t).map(score).collect();
                let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                let prob: Vec<f64> = scores.iter().map(|s| s.exp() / sum).collect();
                let dprob: Vec<f64> = (0..t).map(|j| (0..d).map(|k| gradient(i, k) * value(j, 2, k)).sum()).collect();
                let mean: f64 = prob.iter().zip(&dprob).map(|(p, g)| p * g).sum();
                for j in 0..t {
                    let ds = prob[j] * (dprob[j] - mean);
                    dtable[row(j)] += ds;
                    for k in 0..d {
                        let column = head * d + k;
                        if let Some(at) = tokens[i].0 {
                            y[at * c + column] += prob[j] * value(j, 2, k);
                            dqkv[at * 3 * c + column] += scale * ds * value(j, 1, k);
                        }
                        let to = tokens[j].0.map_or(&mut dbias[..], |at| &mut dqkv[at * 3 * c..]);
                        to[c + column] += scale * ds * value(i, 0, k);
                        to[2 * c + column] += prob[j] * gradient(i, k);
                    }
                }
            }
        }
    }
    [y, dqkv, dtable, dbias]
}

/// N, H, W, heads, channels of a head, window, shift.
const CASES: &[Case] = &[
    case("empty", &[0, 8, 8, 2, 8, 7, 3]),           // no image
    case("no_pixels", &[2, 0, 5, 1, 4, 3, 1]),       // no window either
    case("one", &[1, 1, 1, 1, 1, 1, 0]),             // a token that sees itself
    case("padding", &[1, 1, 1, 1, 3, 2, 1]),         // one real token of four, and a wrap in both directions
    case("small_map", &[2, 5, 6, 3, 4, 7, 3]),       // a map smaller than its window
    case("one_window", &[1, 7, 7, 2, 8, 7, 3]),      // shifted although there is nowhere to go
    case("plain", &[1, 14, 14, 2, 32, 7, 0]),        // as in Swin-T
    case("shifted", &[1, 14, 14, 3, 32, 7, 3]),      // four windows, each with other masks
    case("odd", &[2, 10, 12, 2, 8, 7, 3]),           // padded on both sides, padded tokens in windows that wrap
    case("odd_plain", &[1, 8, 9, 2, 16, 7, 0]),      // windows of almost nothing but padding
    case("tail", &[1, 9, 8, 2, 20, 4, 1]),           // channels that fill no vector
    case("large_shift", &[1, 6, 10, 1, 8, 5, 4]),    // real tokens that wrap next to padded ones
    case("many", &[2, 45, 46, 2, 4, 2, 1]),          // more windows than blocks
    case("wide_head", &[1, 7, 8, 2, 64, 7, 3]),      // the widest head
    case("odd_head", &[1, 5, 4, 1, 37, 4, 2]),       // more than half of the widest, no multiple of anything
    case("wide_window", &[1, 12, 13, 1, 16, 12, 6]), // the widest window: 144 tokens
];

struct Problem {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    how: WindowAttention,
    qkv: Vec<f32>,
    qkv_bias: Vec<f32>,
    table: Vec<f32>,
    dy: Vec<f32>,
}

impl Problem {
    fn of(case: &Case) -> Problem {
        let [n, h, w, heads, d, window, shift] = case.dims.try_into().unwrap();
        let c = heads * d;
        // Biases of 8 bits, so that `in_16_bits` rounds none of them.
        let eighths = |x: Vec<f32>| x.into_iter().map(|x| (x * 64.0).round() / 64.0).collect();
        Problem {
            n,
            h,
            w,
            c,
            how: WindowAttention { window, shift, heads },
            qkv: uniform(1, n * h * w * 3 * c, -2.0, 2.0),
            qkv_bias: eighths(uniform(2, 3 * c, -2.0, 2.0)),
            table: uniform(3, (2 * window - 1).pow(2) * heads, -2.0, 2.0),
            dy: uniform(4, n * h * w * c, -1.0, 1.0),
        }
    }

    /// Returns y, dqkv, the table's gradient and, if there is padding, the bias's.
    fn run(&self, device: &Device, make: impl Fn(&Device, &[usize], &[f32]) -> Tensor) -> Result<Vec<Tensor>> {
        let Problem { n, h, w, c, how, .. } = *self;
        let mut tape = Tape::new(device);
        let qkv = tape.leaf(make(device, &[n, h, w, 3 * c], &self.qkv));
        let bias = tape.leaf(tensor(device, &[3 * c], &self.qkv_bias));
        let table = tape.leaf(tensor(device, &[self.table.len() / how.heads, how.heads], &self.table));
        let y = window_attention(&mut tape, &qkv, &bias, &table, how)?;
        let mut out = vec![y.value().clone()];
        let grads = tape.backward(vec![(y, make(device, &[n, h, w, c], &self.dy))])?;
        out.extend([&qkv, &table].map(|v| grads.get(v).expect("a gradient").clone()));
        out.extend(grads.get(&bias).cloned());
        Ok(out)
    }
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let p = Problem::of(case);
        let out = everywhere(|dev| p.run(dev, tensor));
        let want = definition(&p, &wide(&p.qkv), &wide(&p.qkv_bias), &wide(&p.table));
        let padded = !p.h.is_multiple_of(p.how.window) || !p.w.is_multiple_of(p.how.window);
        assert_eq!(
            out.len(),
            if padded { 4 } else { 3 },
            "{}: a gradient of the bias where there is padding",
            case.name
        );
        for (i, (got, want)) in out.iter().zip(&want).enumerate() {
            assert_close(&format!("{}: output {i}", case.name), &got.f32s(), want, 1e-5, 1e-5);
        }
    }
}

/// The gradients of the definition equal finite differences of its y.
#[test]
fn gradients_are_those_of_finite_differences() {
    for name in ["padding", "small_map", "large_shift", "tail"] {
        let p = Problem::of(CASES.iter().find(|c| c.name == name).unwrap());
        let out = p.run(&Device::cpu(), tensor).unwrap();
        let (qkv, bias, table) = (wide(&p.qkv), wide(&p.qkv_bias), wide(&p.table));
        let loss = |qkv: &[f64], bias: &[f64], table: &[f64]| {
            let [y, ..] = definition(&p, qkv, bias, table);
            y.iter().zip(&p.dy).map(|(y, &g)| y * f64::from(g)).sum::<f64>()
        };
        assert_gradient(&format!("{name}: qkv"), &p.qkv, out[1].f32s(), 1e-5, 1e-4, |x| loss(x, &bias, &table));
        assert_gradient(&format!("{name}: table"), &p.table, out[2].f32s(), 1e-5, 1e-4, |x| loss(&qkv, &bias, x));
        assert_gradient(&format!("{name}: bias"), &p.qkv_bias, out[3].f32s(), 1e-5, 1e-4, |x| loss(&qkv, x, &table));
    }
}

/// Scores beyond ±100: masked and far smaller ones give 0, a far larger one gives 1.
#[test]
fn large_scores() {
    let mut p = Problem::of(CASES.iter().find(|c| c.name == "odd").unwrap());
    p.qkv.iter_mut().for_each(|x| *x *= 4.0);
    let out = everywhere_within(1e-4, 1e-5, |dev| p.run(dev, tensor));
    let want = definition(&p, &wide(&p.qkv), &wide(&p.qkv_bias), &wide(&p.table));
    for (i, (got, want)) in out.iter().zip(&want).enumerate() {
        // A score of 150 has an error of 1e-5, which gradients of ten and keys of eight multiply.
        assert_close(&format!("output {i}"), &got.f32s(), want, 1e-3, 1e-3);
    }
}

/// A qkv that nobody else holds is overwritten with its gradient; the numbers are the same.
#[test]
fn in_place() {
    for name in ["odd", "shifted", "tail"] {
        let p = Problem::of(CASES.iter().find(|c| c.name == name).unwrap());
        let Problem { n, h, w, c, how, .. } = p;
        let out = everywhere(|dev| {
            let mut tape = Tape::new(dev);
            let x = tape.leaf(tensor(dev, &[n, h, w, 3 * c], &p.qkv));
            // A 1×1 layer with identity weights: its output is held by the op alone.
            let mut one = vec![0.0; 9 * c * c];
            (0..3 * c).for_each(|i| one[i * (3 * c + 1)] = 1.0);
            let one = tape.constant(tensor(dev, &[3 * c, 1, 1, 3 * c], &one));
            let qkv = conv2d(&mut tape, &x, &one, None, 1, 0, Activation::None)?;
            let bias = tape.leaf(tensor(dev, &[3 * c], &p.qkv_bias));
            let table = tape.leaf(tensor(dev, &[p.table.len() / how.heads, how.heads], &p.table));
            let y = window_attention(&mut tape, &qkv, &bias, &table, how)?;
            drop(qkv);
            let grads = tape.backward(vec![(y, tensor(dev, &[n, h, w, c], &p.dy))])?;
            Ok([&x, &table].map(|v| grads.get(v).expect("a gradient").clone()).into())
        });
        let want = p.run(&Device::cpu(), tensor).unwrap();
        for (i, want) in want[1..3].iter().enumerate() {
            assert_close(&format!("{name}: output {i}"), &out[i].f32s(), &wide(want.f32s()), 1e-6, 1e-6);
        }
    }
}

/// mmdetection's ShiftWindowMSA with the linear layers before and after it, which are 1×1 convolutions here.
#[test]
fn equals_mmdetection() {
    let file = OpFixture::open("window_attention");
    for (name, h, w, shift) in
        [("noshift_pad", 10, 12, 0), ("shift_pad", 10, 12, 3), ("shift_1win", 5, 6, 3), ("shift_wide", 7, 23, 3)]
    {
        let (n, c, how) = (2, 12, WindowAttention { window: 7, shift, heads: 3 });
        let get = |what: &str| file.f32(&format!("{name}.{what}"));
        let params = ["qkv.weight", "qkv.bias", "relative_position_bias_table", "proj.weight", "proj.bias"];
        let out = everywhere(|dev| {
            let mut tape = Tape::new(dev);
            let x = tape.leaf(tensor(dev, &[n, h, w, c], &get("x0")));
            let [wq, bq, table, wp, bp] = params.map(|param| {
                let key = format!("{name}.param.{param}");
                let shape = match (file.shape(&key), param.ends_with("weight")) {
                    (shape, true) => vec![shape[0], 1, 1, shape[1]],
                    (shape, false) => shape,
                };
                tape.leaf(tensor(dev, &shape, &file.f32(&key)))
            });
            let qkv = conv2d(&mut tape, &x, &wq, Some(&bq), 1, 0, Activation::None)?;
            let y = window_attention(&mut tape, &qkv, &bq, &table, how)?;
            let y = conv2d(&mut tape, &y, &wp, Some(&bp), 1, 0, Activation::None)?;
            let mut out = vec![y.value().clone()];
            let grads = tape.backward(vec![(y, tensor(dev, &[n, h, w, c], &get("gout")))])?;
            out.extend([&x, &wq, &bq, &table, &wp, &bp].map(|v| grads.get(v).expect("a gradient").clone()));
            Ok(out)
        });
        let want = ["y", "dx0"].map(String::from).into_iter().chain(params.map(|p| format!("dparam.{p}")));
        for (got, want) in out.iter().zip(want) {
            assert_close(&format!("{name}.{want}"), &got.f32s(), &wide(&get(&want)), 2e-6, 1e-4);
        }
    }
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let try_with = |shapes: [&[usize]; 3], how: (usize, usize, usize), dtype: DType| {
        let mut tape = Tape::new(&dev);
        let zeros = |shape: &[usize], dtype| Tensor::zeros(&dev, shape, dtype).unwrap();
        let [qkv, bias] = [zeros(shapes[0], DType::F32), zeros(shapes[1], DType::F32)].map(|t| tape.leaf(t));
        let table = tape.leaf(zeros(shapes[2], dtype));
        let how = WindowAttention { window: how.0, shift: how.1, heads: how.2 };
        window_attention(&mut tape, &qkv, &bias, &table, how).map(drop).map_err(|e| e.to_string())
    };
    let good: [&[usize]; 3] = [&[1, 4, 4, 24], &[24], &[9, 2]];
    assert_eq!(try_with(good, (2, 1, 2), DType::F32), Ok(()));
    let refused = |shapes: [&[usize]; 3], how, dtype, what: &str| {
        let error = try_with(shapes, how, dtype).expect_err(what);
        assert!(error.starts_with("window_attention: ") && error.contains(what), "{error}");
    };
    refused([&[1, 4, 24], good[1], good[2]], (2, 1, 2), DType::F32, "qkv");
    refused([&[1, 4, 4, 25], good[1], good[2]], (2, 1, 2), DType::F32, "3C");
    refused(good, (2, 1, 3), DType::F32, "3 heads");
    refused(good, (2, 1, 0), DType::F32, "0 heads");
    refused([good[0], &[8], good[2]], (2, 1, 2), DType::F32, "qkv_bias");
    refused([good[0], good[1], &[25, 2]], (2, 1, 2), DType::F32, "bias_table");
    refused(good, (2, 1, 2), DType::I32, "bias_table: want f32");
    refused(good, (2, 2, 2), DType::F32, "moved by 2");
    refused(good, (0, 0, 2), DType::F32, "side 0");
    refused(good, (13, 0, 2), DType::F32, "side 13");
    refused([&[1, 4, 4, 3 * 65], &[195], &[9, 1]], (2, 1, 1), DType::F32, "at most 64");
}

/// On tensor cores: heads of whole vectors in windows of up to 64 tokens.
const TENSOR_CORES: &[Case] = &[
    case("padded", &[1, 8, 9, 2, 32, 7, 3]),
    case("one_fragment", &[1, 5, 4, 1, 8, 3, 1]), // fewer tokens and channels than a fragment has
    case("many", &[1, 45, 46, 4, 8, 2, 1]),       // more windows than blocks
    case("wide_head", &[1, 8, 8, 1, 64, 8, 0]),   // nothing to pad: 64 tokens, 64 channels
    case("half_fragment", &[1, 5, 5, 1, 40, 5, 2]), // 25 tokens: some warps have none; channels of half a fragment
];

/// On CUDA cores.
const CUDA_CORES: &[Case] = &[
    case("tail", &[1, 5, 6, 2, 20, 4, 1]),       // no vectors
    case("wide_window", &[1, 9, 8, 1, 8, 9, 4]), // 81 tokens
];

/// Tensor cores round the factors, and y is rounded too, whose product with dy is the mean of a row's dp. The errors
/// are therefore those of single terms, in sums that cancel.
#[test]
fn in_16_bits() {
    for case in TENSOR_CORES.iter().chain(CUDA_CORES) {
        let p = Problem::of(case);
        in_halves_within(1.0, 0.5, |dev, halves| p.run(dev, |dev, shape, data| halves.tensor(dev, shape, data)));
    }
}
