//! Convolution with bias and ReLU on the tape, against the definition, in f32 and in 16 bits.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::conv2d::{Activation, conv2d, conv2d_live};
use upres::tape::{Param, Role, Tape};
use upres::tensor::{DType, Tensor};

/// The definition: y without a ReLU, and the gradients of x, weight and bias where `g` is the gradient of y.
fn naive(case: &Case, [x, weight, bias, g]: [&[f64]; 4]) -> [Vec<f64>; 4] {
    let [_, h, w, c, o, k, stride, pad] = sizes(case);
    let (oh, ow) = ((h + 2 * pad - k) / stride + 1, (w + 2 * pad - k) / stride + 1);
    let (mut y, mut dx) = (vec![0.0; g.len()], vec![0.0; x.len()]);
    let (mut dw, mut db) = (vec![0.0; weight.len()], vec![0.0; o]);
    for i in 0..g.len() {
        let (oc, ox, oy, image) = (i % o, i / o % ow, i / o / ow % oh, i / o / ow / oh);
        y[i] += bias[oc];
        db[oc] += g[i];
        for (ky, kx) in (0..k).flat_map(|ky| (0..k).map(move |kx| (ky, kx))) {
            let (iy, ix) = ((oy * stride + ky).wrapping_sub(pad), (ox * stride + kx).wrapping_sub(pad));
            if iy >= h || ix >= w {
                continue;
            }
            for ic in 0..c {
                let (a, b) = (((image * h + iy) * w + ix) * c + ic, ((oc * k + ky) * k + kx) * c + ic);
                y[i] += x[a] * weight[b];
                dx[a] += weight[b] * g[i];
                dw[b] += x[a] * g[i];
            }
        }
    }
    [y, dx, dw, db]
}

/// N, H, W, C, O, kernel, stride, pad. These test the op on the tape; tests/ops/cpu_conv.rs tests the kernels on many
/// more shapes.
const CASES: &[Case] = &[
    case("empty", &[0, 5, 5, 3, 4, 3, 1, 1]),
    case("empty_many_channels", &[0, 8, 8, 8, 8, 3, 1, 1]), // Winograd's channels, no tile
    case("one", &[1, 1, 1, 1, 1, 1, 1, 0]),
    case("tail", &[2, 7, 9, 5, 11, 3, 2, 1]),
    case("pointwise", &[2, 6, 5, 33, 17, 1, 1, 0]),
    case("three_by_three", &[1, 13, 10, 24, 40, 3, 1, 1]), // Winograd's
    case("stem", &[1, 24, 20, 3, 64, 7, 2, 3]),
];

fn sizes(case: &Case) -> [usize; 8] {
    case.dims.try_into().unwrap()
}

fn param(device: &Device, name: &str, shape: &[usize], data: &[f32]) -> Result<Param> {
    let p = Param::new(name, Role::Weight, Tensor::from_slice(device, shape, data)?);
    p.set_grad(Some(Tensor::zeros(device, shape, DType::F32)?))?;
    Ok(p)
}

/// Applies the same parameters twice to the same input (without and with a ReLU), as the heads of a pyramid do. Returns
/// both y, both dx, dw and db.
fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let [n, h, w, c, o, k, stride, pad] = sizes(case);
    let x = uniform(1, n * h * w * c, -1.0, 1.0);
    let weight = param(device, "weight", &[o, k, k, c], &uniform(2, o * k * k * c, -1.0, 1.0))?;
    let bias = param(device, "bias", &[o], &uniform(3, o, -1.0, 1.0))?;
    let mut tape = Tape::new(device);
    let (v, b) = (tape.param(&weight), tape.param(&bias));
    let (mut out, mut inputs, mut roots) = (Vec::new(), Vec::new(), Vec::new());
    for activation in [Activation::None, Activation::Relu] {
        let x = tape.leaf(Tensor::from_slice(device, &[n, h, w, c], &x)?);
        let y = conv2d(&mut tape, &x, &v, Some(&b), stride, pad, activation)?;
        let dy = Tensor::from_slice(device, y.shape(), &uniform(4, y.value().numel(), -1.0, 1.0))?;
        out.push(y.value().clone());
        inputs.push(x);
        roots.push((y, dy));
    }
    let grads = tape.backward(roots)?;
    out.extend(inputs.iter().map(|x| grads.get(x).expect("dx").clone()));
    out.push(weight.grad().clone().expect("dw"));
    out.push(bias.grad().clone().expect("db"));
    Ok(out)
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let [n, h, w, c, o, k, stride, pad] = sizes(case);
        let out = everywhere(|dev| run(dev, case));
        let (oh, ow) = ((h + 2 * pad - k) / stride + 1, (w + 2 * pad - k) / stride + 1);
        let (x, weight) = (wide(&uniform(1, n * h * w * c, -1.0, 1.0)), wide(&uniform(2, o * k * k * c, -1.0, 1.0)));
        let (bias, dy) = (wide(&uniform(3, o, -1.0, 1.0)), wide(&uniform(4, n * oh * ow * o, -1.0, 1.0)));
        // The second pass has a ReLU. Its mask is taken from the op's own y, because near 0 rounding decides.
        let masked = dy.iter().zip(out[1].f32s()).map(|(&dy, y)| if y > 0.0 { dy } else { 0.0 });
        let [y, dx, mut dw, mut db] = naive(case, [&x, &weight, &bias, &dy]);
        let [_, dx_relu, dw_relu, db_relu] = naive(case, [&x, &weight, &bias, &masked.collect::<Vec<_>>()]);
        dw.iter_mut().zip(dw_relu).for_each(|(sum, more)| *sum += more);
        db.iter_mut().zip(db_relu).for_each(|(sum, more)| *sum += more);
        let relu: Vec<f64> = y.iter().map(|v| v.max(0.0)).collect();
        for (i, want) in [&y, &relu, &dx, &dx_relu, &dw, &db].into_iter().enumerate() {
            // The transforms of F(4x4, 3x3) multiply by up to 8 and subtract again, which loses a digit.
            let tol = if case.name == "three_by_three" { 3e-5 } else { 3e-6 };
            let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len().max(1) as f64).sqrt();
            assert_close(&format!("{}: output {i}", case.name), &out[i].f32s(), want, tol * rms, tol);
        }
    }
}

/// A ReLU does not hide NaN, neither in y nor in the gradients behind it.
#[test]
fn nan_goes_through() {
    for case in &CASES[2..] {
        let [n, h, w, c, o, k, stride, pad] = sizes(case);
        let out = everywhere(|dev| {
            let mut tape = Tape::new(dev);
            let mut data = uniform(1, n * h * w * c, -1.0, 1.0);
            data[0] = f32::NAN;
            let x = tape.leaf(Tensor::from_slice(dev, &[n, h, w, c], &data)?);
            let v = tape.leaf(Tensor::from_slice(dev, &[o, k, k, c], &uniform(2, o * k * k * c, -1.0, 1.0))?);
            let y = conv2d(&mut tape, &x, &v, None, stride, pad, Activation::Relu)?;
            let dy = Tensor::from_slice(dev, y.shape(), &uniform(4, y.value().numel(), -1.0, 1.0))?;
            let value = y.value().clone();
            let grads = tape.backward(vec![(y, dy)])?;
            Ok(vec![value, grads.get(&v).expect("dw").clone()])
        });
        // The first output pixel sees the first input pixel, so a NaN must reach every channel of it and the weight
        // between the two.
        assert!(out[0].f32s()[..o].iter().all(|v| v.is_nan()), "{}: y", case.name);
        assert!(out[1].f32s()[(pad * k + pad) * c].is_nan(), "{}: dw", case.name);
    }
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let mut leaf = |shape: &[usize]| tape.leaf(Tensor::zeros(&dev, shape, DType::F32).unwrap());
    let (x, w, thin, bias) = (leaf(&[1, 4, 4, 3]), leaf(&[2, 3, 3, 3]), leaf(&[2, 3, 3, 1]), leaf(&[5]));
    let mut conv = |w, bias, stride, pad| conv2d(&mut tape, &x, w, bias, stride, pad, Activation::None).is_err();
    assert!(conv(&thin, None, 1, 1) && conv(&w, Some(&bias), 1, 1) && conv(&w, None, 0, 1));
    assert!(!conv(&w, None, 1, 0));
    let whole = tape.leaf(Tensor::zeros(&dev, &[2], DType::I32).unwrap());
    let error = conv2d(&mut tape, &x, &w, Some(&whole), 1, 1, Activation::None).unwrap_err().to_string();
    assert!(error.starts_with("conv2d: bias: want f32"), "{error}");
}

/// Images beyond the counts, with every algorithm of the CPU: y and dx are zero, dw and db get no contribution, and the
/// CPU does not read them.
#[test]
fn images_that_do_not_count() {
    const LIVE: &[Case] = &[
        case("nothing", &[0, 4, 4, 3, 4, 3, 1, 1]),
        case("implicit", &[6, 7, 9, 5, 11, 3, 2, 1]),
        case("pointwise", &[6, 6, 5, 33, 17, 1, 1, 0]),
        case("winograd_by_tiles", &[6, 13, 10, 24, 40, 3, 1, 1]),
        case("winograd_by_channels", &[6, 8, 8, 16, 130, 3, 1, 1]),
        case("columns", &[6, 2, 2, 2100, 2000, 1, 1, 0]), // a weight that is not packed as a whole
    ];
    for case in LIVE {
        let [n, h, w, c, o, k, stride, pad] = sizes(case);
        // Two groups of three images: one image counts in the first, all (and more) in the second.
        let alive = |image: usize| image == 0 || image >= 3;
        let run = |dev: &Device, counts: Option<(&[usize], &[i32])>, rest: f32| {
            let fill = |seed, each: usize| {
                let v = uniform(seed, n * each, -1.0, 1.0);
                v.iter().enumerate().map(|(i, &v)| if alive(i / each) { v } else { rest }).collect::<Vec<f32>>()
            };
            let mut tape = Tape::new(dev);
            let x = tape.leaf(tensor(dev, &[n, h, w, c], &fill(1, h * w * c)));
            let v = tape.leaf(tensor(dev, &[o, k, k, c], &uniform(2, o * k * k * c, -1.0, 1.0)));
            let b = tape.leaf(tensor(dev, &[o], &uniform(3, o, -1.0, 0.0))); // a ReLU of the bias alone is 0
            let y = match counts {
                None => conv2d(&mut tape, &x, &v, Some(&b), stride, pad, Activation::Relu)?,
                Some((shape, counts)) => {
                    let counts = tensor(dev, shape, counts);
                    conv2d_live(&mut tape, &x, &v, Some(&b), stride, pad, Activation::Relu, &counts)?
                }
            };
            let each = y.value().numel() / n.max(1);
            let dy = tensor(dev, y.shape(), &fill(4, each.max(1)));
            let mut out = vec![y.value().clone()];
            let grads = tape.backward(vec![(y, dy)])?;
            out.extend([&x, &v, &b].map(|v| grads.get(v).expect("a gradient").clone()));
            Ok(out)
        };
        let plain = everywhere(|dev| run(dev, None, 0.0));
        for counts in [(&[2][..], &[1, 7][..]), (&[2, 2], &[1, 9, 3, 0])] {
            let live = everywhere(|dev| run(dev, Some(counts), 0.0));
            let dirty = run(&Device::cpu(), Some(counts), f32::NAN).unwrap();
            for (i, plain) in plain.iter().enumerate() {
                let want = wide(&plain.f32s());
                let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len().max(1) as f64).sqrt();
                // With fewer images another algorithm may be chosen.
                assert_close(&format!("{}: output {i}", case.name), &live[i].f32s(), &want, 3e-5 * rms, 3e-5);
                assert_eq!(dirty[i].f32s(), live[i].f32s(), "{}: output {i}: others were read", case.name);
            }
        }
        if n > 0 {
            let none = run(&Device::cpu(), Some((&[3], &[0, -1, 0])), f32::NAN).unwrap();
            assert!(none.iter().all(|t| t.f32s().iter().all(|&v| v == 0.0)), "{}", case.name);
        }
    }
}

/// Prints the time of a layer of the mask head by the share of its images that count.
#[test]
#[ignore = "a measurement: run with --ignored --nocapture"]
fn time_follows_the_counts() {
    let dev = Device::cpu();
    let (b, p, h, c) = (2, 64, 14, 256);
    let x = tensor(&dev, &[b * p, h, h, c], &uniform(1, b * p * h * h * c, -1.0, 1.0));
    let w = tensor(&dev, &[c, 3, 3, c], &uniform(2, 9 * c * c, -0.1, 0.1));
    for live in [0, 8, 16, 32, 64] {
        let counts = tensor(&dev, &[b], &[live; 2]);
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let mut tape = Tape::new(&dev);
            let (x, w) = (tape.leaf(x.clone()), tape.leaf(w.clone()));
            let start = std::time::Instant::now();
            let y = conv2d_live(&mut tape, &x, &w, None, 1, 1, Activation::Relu, &counts).unwrap();
            let dy = Tensor::zeros(&dev, y.shape(), DType::F32).unwrap();
            tape.backward(vec![(y, dy)]).unwrap();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{live} of {p} images: {:.0} ms", best * 1e3);
    }
}

/// In 16 bits y, dx and dw are rounded once, from f32 sums. On a GPU y is also rounded before the bias is added, by
/// half a unit of the product, which may be larger than y.
#[test]
fn sixteen_bits() {
    for case in CASES {
        let [n, h, w, c, o, k, stride, pad] = sizes(case);
        in_halves_within(1.0, 0.5, |dev, halves| {
            let mut tape = Tape::new(dev);
            let x = tape.leaf(halves.tensor(dev, &[n, h, w, c], &uniform(1, n * h * w * c, -1.0, 1.0)));
            let v = tape.leaf(halves.tensor(dev, &[o, k, k, c], &uniform(2, o * k * k * c, -1.0, 1.0)));
            let b = tape.leaf(Tensor::from_slice(dev, &[o], &uniform(3, o, -1.0, 1.0))?);
            let y = conv2d(&mut tape, &x, &v, Some(&b), stride, pad, Activation::None)?;
            let mut out = vec![y.value().clone()];
            let dy = halves.tensor(dev, y.shape(), &uniform(4, y.value().numel(), -1.0, 1.0));
            let grads = tape.backward(vec![(y, dy)])?;
            out.extend([&x, &v, &b].map(|v| grads.get(v).expect("a gradient").clone()));
            Ok(out)
        });
    }
}
