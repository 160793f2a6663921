//! Linear layer with bias and ReLU on the tape, against the definition, in f32 and in 16 bits.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::conv2d::Activation;
use upres::ops::linear::{linear, linear_last};
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

/// The definition: `y = max(x w^T + b, 0)`, and the gradients of x, w and b where `g` is the gradient before the ReLU.
fn naive([m, c, o]: [usize; 3], [x, w, b, g]: [&[f64]; 4]) -> [Vec<f64>; 4] {
    let (mut y, mut dx) = (Vec::new(), vec![0.0; m * c]);
    let (mut dw, mut db) = (vec![0.0; o * c], vec![0.0; o]);
    for (i, g) in g.iter().enumerate() {
        let (row, k) = (i / o, i % o);
        let mut sum = b[k];
        for j in 0..c {
            sum += x[row * c + j] * w[k * c + j];
            dx[row * c + j] += g * w[k * c + j];
            dw[k * c + j] += g * x[row * c + j];
        }
        db[k] += g;
        y.push(sum.max(0.0));
    }
    [y, dx, dw, db]
}

/// M, C, O. These test the op on the tape; tests/ops/cpu_conv.rs tests the kernels on larger shapes.
const CASES: &[Case] = &[
    case("empty", &[0, 5, 3]),
    case("one", &[1, 1, 1]),
    case("tail", &[13, 33, 7]),
    case("one_row", &[1, 300, 81]),
    case("head", &[64, 784, 81]),
];

/// y, dx, dw, db.
fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let [m, c, o] = case.dims.try_into().unwrap();
    let mut tape = Tape::new(device);
    let x = tape.leaf(Tensor::from_slice(device, &[m, 1, c], &uniform(1, m * c, -1.0, 1.0))?);
    let w = tape.leaf(Tensor::from_slice(device, &[o, c], &uniform(2, o * c, -1.0, 1.0))?);
    let b = tape.leaf(Tensor::from_slice(device, &[o], &uniform(3, o, -1.0, 1.0))?);
    let y = linear(&mut tape, &x, &w, Some(&b), Activation::Relu)?;
    let mut out = vec![y.value().clone()];
    let grads = tape.backward(vec![(y, Tensor::from_slice(device, &[m, o], &uniform(4, m * o, -1.0, 1.0))?)])?;
    out.extend([&x, &w, &b].map(|v| grads.get(v).expect("a gradient").clone()));
    Ok(out)
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let [m, c, o]: [usize; 3] = case.dims.try_into().unwrap();
        let out = everywhere(|dev| run(dev, case));
        let [x, w] = [(1, m * c), (2, o * c)].map(|(seed, n)| wide(&uniform(seed, n, -1.0, 1.0)));
        let [b, dy] = [(3, o), (4, m * o)].map(|(seed, n)| wide(&uniform(seed, n, -1.0, 1.0)));
        // The ReLU's mask is taken from the op's own y, because near 0 rounding decides.
        let g: Vec<f64> = dy.iter().zip(out[0].f32s()).map(|(&dy, y)| if y > 0.0 { dy } else { 0.0 }).collect();
        for (i, want) in naive([m, c, o], [&x, &w, &b, &g]).iter().enumerate() {
            let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len().max(1) as f64).sqrt();
            assert_close(&format!("{}: output {i}", case.name), &out[i].f32s(), want, 3e-6 * rms, 3e-6);
        }
    }
}

/// A ReLU does not hide NaN.
#[test]
fn nan_goes_through() {
    for case in &CASES[1..] {
        let [m, c, o] = case.dims.try_into().unwrap();
        let out = everywhere(|dev| {
            let mut tape = Tape::new(dev);
            let mut data = uniform(1, m * c, -1.0, 1.0);
            data[0] = f32::NAN;
            let x = tape.leaf(Tensor::from_slice(dev, &[m, c], &data)?);
            let w = tape.leaf(Tensor::from_slice(dev, &[o, c], &uniform(2, o * c, -1.0, 1.0))?);
            let y = linear(&mut tape, &x, &w, None, Activation::Relu)?;
            let value = y.value().clone();
            let dy = Tensor::from_slice(dev, &[m, o], &uniform(4, m * o, -1.0, 1.0))?;
            let grads = tape.backward(vec![(y, dy)])?;
            Ok(vec![value, grads.get(&w).expect("dw").clone()])
        });
        let y = out[0].f32s();
        assert!(y[..o].iter().all(|v| v.is_nan()) && y[o..].iter().all(|v| !v.is_nan()), "{}: y", case.name);
        assert!(out[1].f32s().iter().step_by(c).all(|v| v.is_nan()), "{}: dw", case.name);
    }
}

/// Applied to the last dimension of an image, it is the layer on a matrix with one row per pixel.
#[test]
fn the_last_dimension_of_an_image() {
    for dims in [[2, 3, 5, 7, 4], [1, 1, 1, 1, 1], [0, 2, 2, 3, 5]] {
        let [n, h, w, c, o] = dims;
        let m = n * h * w;
        everywhere(|dev| {
            let mut both = Vec::new();
            for last in [false, true] {
                let mut tape = Tape::new(dev);
                let shape = if last { vec![n, h, w, c] } else { vec![m, c] };
                let x = tape.leaf(Tensor::from_slice(dev, &shape, &uniform(1, m * c, -1.0, 1.0))?);
                let w = tape.leaf(Tensor::from_slice(dev, &[o, c], &uniform(2, o * c, -1.0, 1.0))?);
                let f = if last { linear_last } else { linear };
                let y = f(&mut tape, &x, &w, None, Activation::None)?;
                assert_eq!(y.shape(), [&shape[..shape.len() - 1], &[o]].concat());
                both.push(y.value().clone());
                let dy = Tensor::from_slice(dev, y.shape(), &uniform(4, m * o, -1.0, 1.0))?;
                let grads = tape.backward(vec![(y, dy)])?;
                both.extend([&x, &w].map(|v| grads.get(v).expect("a gradient").clone()));
            }
            Ok(both)
        })
        .chunks(3)
        .collect::<Vec<_>>()
        .windows(2)
        .for_each(|p| p[0].iter().zip(p[1]).for_each(|(a, b)| assert_eq!(a.f32s(), b.f32s())));
    }
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let mut leaf = |shape: &[usize]| tape.leaf(Tensor::zeros(&dev, shape, DType::F32).unwrap());
    let (x, w, bias, image) = (leaf(&[2, 4]), leaf(&[3, 5]), leaf(&[5]), leaf(&[2, 1, 4]));
    assert!(linear(&mut tape, &x, &w, None, Activation::None).is_err());
    assert!(linear_last(&mut tape, &x, &w, None, Activation::None).is_err());
    let narrow = tape.leaf(Tensor::zeros(&dev, &[3, 2], DType::F32).unwrap());
    assert!(linear_last(&mut tape, &image, &narrow, None, Activation::None).is_err(), "rows of 4");
    let mut w = || tape.leaf(Tensor::zeros(&dev, &[3, 4], DType::F32).unwrap());
    let w = w();
    assert!(linear(&mut tape, &x, &w, Some(&bias), Activation::None).is_err());
    let whole = tape.leaf(Tensor::zeros(&dev, &[3], DType::I32).unwrap());
    let error = linear(&mut tape, &x, &w, Some(&whole), Activation::None).unwrap_err().to_string();
    assert!(error.starts_with("linear: bias: want f32"), "{error}");
}

/// In 16 bits y, dx and dw are rounded once, from f32 sums. On a GPU y is also rounded before the bias is added, by
/// half a unit of the product, which may be larger than y.
#[test]
fn sixteen_bits() {
    for case in CASES {
        let [m, c, o]: [usize; 3] = case.dims.try_into().unwrap();
        in_halves_within(1.0, 0.5, |dev, halves| {
            let mut tape = Tape::new(dev);
            let x = tape.leaf(halves.tensor(dev, &[m, c], &uniform(1, m * c, -1.0, 1.0)));
            let w = tape.leaf(halves.tensor(dev, &[o, c], &uniform(2, o * c, -1.0, 1.0)));
            let b = tape.leaf(Tensor::from_slice(dev, &[o], &uniform(3, o, -1.0, 1.0))?);
            let y = linear(&mut tape, &x, &w, Some(&b), Activation::Relu)?;
            let mut out = vec![y.value().clone()];
            let grads = tape.backward(vec![(y, halves.tensor(dev, &[m, o], &uniform(4, m * o, -1.0, 1.0)))])?;
            out.extend([&x, &w, &b].map(|v| grads.get(v).expect("a gradient").clone()));
            Ok(out)
        });
    }
}
