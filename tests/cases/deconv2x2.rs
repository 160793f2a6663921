//! Transposed 2×2 convolution of stride 2, against the definition and torch, in f32 and in 16 bits.

use super::{Case, case};
use crate::support::tensors::*;
use std::time::Instant;
use upres::Result;
use upres::device::Device;
use upres::ops::conv2d::Activation;
use upres::ops::deconv2x2::deconv2x2;
use upres::tape::{Param, Role, Tape};
use upres::tensor::{DType, Tensor};

/// The definition: y without a ReLU, and the gradients of x, weight and bias where `g` is the gradient of y.
fn naive(case: &Case, [x, weight, bias, g]: [&[f64]; 4]) -> [Vec<f64>; 4] {
    let [_, h, w, i, o]: [usize; 5] = case.dims.try_into().unwrap();
    let (mut y, mut dx) = (vec![0.0; g.len()], vec![0.0; x.len()]);
    let (mut dw, mut db) = (vec![0.0; weight.len()], vec![0.0; o]);
    for at in 0..g.len() {
        let (oc, px, py, map) = (at % o, at / o % (2 * w), at / o / (2 * w) % (2 * h), at / o / (4 * w * h));
        y[at] += bias[oc];
        db[oc] += g[at];
        for ic in 0..i {
            let a = ((map * h + py / 2) * w + px / 2) * i + ic;
            let b = ((ic * 2 + py % 2) * 2 + px % 2) * o + oc;
            y[at] += x[a] * weight[b];
            dx[a] += weight[b] * g[at];
            dw[b] += x[a] * g[at];
        }
    }
    [y, dx, dw, db]
}

/// R, H, W, I, O.
const CASES: &[Case] = &[
    case("empty", &[0, 4, 4, 3, 2]),
    case("no_rows", &[2, 0, 4, 3, 2]),
    case("one", &[1, 1, 1, 1, 1]),
    case("tail", &[2, 3, 5, 7, 5]),     // channels that fill no vector
    case("panels", &[1, 5, 3, 33, 20]), // 2·O beyond one panel, an odd number of rows
    case("tasks", &[3, 14, 14, 16, 8]), // more than one task a batch
    case("wide", &[1, 2, 300, 8, 12]),  // a task of one row
    case("deep", &[1, 3, 2, 512, 4]),   // a depth that is gathered, in two parts
];

fn param(device: &Device, shape: &[usize], data: &[f32]) -> Result<Param> {
    let p = Param::new("p", Role::Weight, Tensor::from_slice(device, shape, data)?);
    p.set_grad(Some(Tensor::zeros(device, shape, DType::F32)?))?;
    Ok(p)
}

/// Applies the layer twice to the same input, without and with a ReLU. Returns both y, both dx, dw and db.
fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let [r, h, w, i, o] = case.dims.try_into().unwrap();
    let weight = param(device, &[i, 2, 2, o], &uniform(2, 4 * i * o, -1.0, 1.0))?;
    let bias = param(device, &[o], &uniform(3, o, -1.0, 1.0))?;
    let mut tape = Tape::new(device);
    let (wt, b) = (tape.param(&weight), tape.param(&bias));
    let (mut out, mut inputs, mut roots) = (Vec::new(), Vec::new(), Vec::new());
    for activation in [Activation::None, Activation::Relu] {
        let x = tape.leaf(tensor(device, &[r, h, w, i], &uniform(1, r * h * w * i, -1.0, 1.0)));
        let y = deconv2x2(&mut tape, &x, &wt, Some(&b), activation, None)?;
        let dy = tensor(device, y.shape(), &uniform(4, y.value().numel(), -1.0, 1.0));
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
        let [r, h, w, i, o]: [usize; 5] = case.dims.try_into().unwrap();
        let out = everywhere(|dev| run(dev, case));
        let (x, wt) = (wide(&uniform(1, r * h * w * i, -1.0, 1.0)), wide(&uniform(2, 4 * i * o, -1.0, 1.0)));
        let (bias, dy) = (wide(&uniform(3, o, -1.0, 1.0)), wide(&uniform(4, 4 * r * h * w * o, -1.0, 1.0)));
        // The second pass has a ReLU. Its mask is taken from the op's own y, because near 0 rounding decides.
        let masked = dy.iter().zip(out[1].f32s()).map(|(&dy, y)| if y > 0.0 { dy } else { 0.0 });
        let [y, dx, mut dw, mut db] = naive(case, [&x, &wt, &bias, &dy]);
        let [_, dx_relu, dw_relu, db_relu] = naive(case, [&x, &wt, &bias, &masked.collect::<Vec<_>>()]);
        dw.iter_mut().zip(dw_relu).for_each(|(sum, more)| *sum += more);
        db.iter_mut().zip(db_relu).for_each(|(sum, more)| *sum += more);
        let relu: Vec<f64> = y.iter().map(|v| v.max(0.0)).collect();
        for (i, want) in [&y, &relu, &dx, &dx_relu, &dw, &db].into_iter().enumerate() {
            let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len().max(1) as f64).sqrt();
            assert_close(&format!("{}: output {i}", case.name), &out[i].f32s(), want, 3e-6 * rms, 3e-6);
        }
    }
}

#[test]
fn equals_torch() {
    let f = OpFixture::open("masks");
    let (x, [r, i, h, w]) = f.nhwc("deconv.x0");
    let o = f.shape("deconv.param.bias")[0];
    // (in, out, kh, kw) to [I,2,2,O].
    let turned = |key: &str| -> Vec<f32> {
        let v = f.f32(key);
        (0..4 * i * o).map(|at| v[((at / (4 * o)) * o + at % o) * 4 + at / o % 4]).collect()
    };
    let out = everywhere(|dev| {
        let mut tape = Tape::new(dev);
        let x = tape.leaf(tensor(dev, &[r, h, w, i], &x));
        let wt = tape.leaf(tensor(dev, &[i, 2, 2, o], &turned("deconv.param.weight")));
        let b = tape.leaf(tensor(dev, &[o], &f.f32("deconv.param.bias")));
        let y = deconv2x2(&mut tape, &x, &wt, Some(&b), Activation::None, None)?;
        let mut out = vec![y.value().clone()];
        let dy = tensor(dev, y.shape(), &f.nhwc("deconv.gout").0);
        let grads = tape.backward(vec![(y, dy)])?;
        out.extend([&x, &wt, &b].map(|v| grads.get(v).expect("a gradient").clone()));
        Ok(out)
    });
    let want =
        [f.nhwc("deconv.y").0, f.nhwc("deconv.dx0").0, turned("deconv.dparam.weight"), f.f32("deconv.dparam.bias")];
    for (k, want) in want.iter().enumerate() {
        assert_close(&format!("output {k}"), &out[k].f32s(), &wide(want), 1e-5, 1e-5);
    }
}

/// Maps beyond the counts: y and dx are zero, dw and db get no contribution, and the CPU does not read them.
#[test]
fn maps_that_do_not_count() {
    let (r, h, w, i, o) = (6, 3, 4, 5, 6);
    let run = |dev: &Device, counts: Option<(&[usize], &[i32])>, alive: &[bool], rest: f32| {
        let fill = |seed, each: usize, rest| {
            let v = uniform(seed, r * each, -1.0, 1.0);
            v.iter().enumerate().map(|(k, &v)| if alive[k / each] { v } else { rest }).collect::<Vec<f32>>()
        };
        let mut tape = Tape::new(dev);
        let x = tape.leaf(tensor(dev, &[r, h, w, i], &fill(1, h * w * i, rest)));
        let wt = tape.leaf(tensor(dev, &[i, 2, 2, o], &uniform(2, 4 * i * o, -1.0, 1.0)));
        let b = tape.leaf(tensor(dev, &[o], &uniform(3, o, -1.0, 0.0))); // a ReLU of the bias alone is 0
        let counts = counts.map(|(shape, counts)| tensor(dev, shape, counts));
        let y = deconv2x2(&mut tape, &x, &wt, Some(&b), Activation::Relu, counts.as_ref())?;
        let dy = tensor(dev, y.shape(), &fill(4, 4 * h * w * o, rest));
        let mut out = vec![y.value().clone()];
        let grads = tape.backward(vec![(y, dy)])?;
        out.extend([&x, &wt, &b].map(|v| grads.get(v).expect("a gradient").clone()));
        Ok(out)
    };
    // Two groups of three maps: one map counts in the first, all (and more) in the second.
    let alive = [true, false, false, true, true, true];
    let plain = everywhere(|dev| run(dev, None, &alive, 0.0));
    for counts in [(&[2][..], &[1, 7][..]), (&[2, 2], &[1, 9, 3, 0])] {
        let live = everywhere(|dev| run(dev, Some(counts), &alive, 0.0));
        let dirty: Vec<_> = run(&Device::cpu(), Some(counts), &alive, f32::NAN).unwrap();
        for (k, plain) in plain.iter().enumerate() {
            assert_close(&format!("output {k}"), &live[k].f32s(), &wide(&plain.f32s()), 1e-6, 1e-6);
            assert_eq!(dirty[k].f32s(), live[k].f32s(), "output {k}: other maps were read");
        }
    }
    let none = run(&Device::cpu(), Some((&[3], &[0, -1, 0])), &[false; 6], f32::NAN).unwrap();
    assert!(none.iter().all(|t| t.f32s().iter().all(|&v| v == 0.0)));
}

/// Prints the time of a layer of the mask head by the share of its maps that count.
#[test]
#[ignore = "a measurement: run with --ignored --nocapture"]
fn time_follows_the_counts() {
    let dev = Device::cpu();
    let (b, p, h, i, o) = (2, 64, 14, 256, 256);
    let x = tensor(&dev, &[b * p, h, h, i], &uniform(1, b * p * h * h * i, -1.0, 1.0));
    let wt = tensor(&dev, &[i, 2, 2, o], &uniform(2, 4 * i * o, -0.1, 0.1));
    for live in [0, 8, 16, 32, 64] {
        let counts = tensor(&dev, &[b], &[live; 2]);
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let mut tape = Tape::new(&dev);
            let (x, wt) = (tape.leaf(x.clone()), tape.leaf(wt.clone()));
            let start = Instant::now();
            let y = deconv2x2(&mut tape, &x, &wt, None, Activation::Relu, Some(&counts)).unwrap();
            let dy = Tensor::zeros(&dev, y.shape(), DType::F32).unwrap();
            tape.backward(vec![(y, dy)]).unwrap();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{live} of {p} maps: {:.0} ms", best * 1e3);
    }
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let mut leaf = |shape: &[usize]| tape.leaf(Tensor::zeros(&dev, shape, DType::F32).unwrap());
    let (x, wt, thin, torch) = (leaf(&[4, 3, 3, 5]), leaf(&[5, 2, 2, 6]), leaf(&[4, 2, 2, 6]), leaf(&[5, 6, 2, 2]));
    let (bias, none) = (leaf(&[5]), leaf(&[4, 3, 3, 0]));
    let mut run = |x, wt, bias, counts: Option<&[usize]>| {
        let counts = counts.map(|shape| Tensor::zeros(&dev, shape, DType::I32).unwrap());
        let y = deconv2x2(&mut tape, x, wt, bias, Activation::None, counts.as_ref());
        y.map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(run(&x, &wt, None, Some(&[2])), Ok(()));
    assert!(run(&x, &thin, None, None).unwrap_err().starts_with("deconv2x2: wt"));
    assert!(run(&x, &torch, None, None).unwrap_err().starts_with("deconv2x2: wt"));
    assert!(run(&x, &wt, Some(&bias), None).unwrap_err().starts_with("deconv2x2: bias"));
    assert!(run(&none, &wt, None, None).is_err());
    for counts in [&[3][..], &[0], &[2, 0], &[2, 1, 1]] {
        let error = run(&x, &wt, None, Some(counts)).unwrap_err();
        assert!(error.starts_with("deconv2x2: counts"), "{error}");
    }
}

/// In 16 bits y, dx and dw are rounded once, from f32 sums. On a GPU the rows between product and bias are rounded too.
#[test]
fn sixteen_bits() {
    for case in CASES {
        let [r, h, w, i, o]: [usize; 5] = case.dims.try_into().unwrap();
        in_halves_within(1.0, 1.0, |dev, halves| {
            let mut tape = Tape::new(dev);
            let x = tape.leaf(halves.tensor(dev, &[r, h, w, i], &uniform(1, r * h * w * i, -1.0, 1.0)));
            let wt = tape.leaf(halves.tensor(dev, &[i, 2, 2, o], &uniform(2, 4 * i * o, -1.0, 1.0)));
            let b = tape.leaf(Tensor::from_slice(dev, &[o], &uniform(3, o, -1.0, 1.0))?);
            let y = deconv2x2(&mut tape, &x, &wt, Some(&b), Activation::None, None)?;
            let mut out = vec![y.value().clone()];
            let dy = halves.tensor(dev, y.shape(), &uniform(4, y.value().numel(), -1.0, 1.0));
            let grads = tape.backward(vec![(y, dy)])?;
            out.extend([&x, &wt, &b].map(|v| grads.get(v).expect("a gradient").clone()));
            Ok(out)
        });
    }
}
