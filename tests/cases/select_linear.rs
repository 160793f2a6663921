//! A linear layer of which each RoI uses one class's row (the mask head's predictor), against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::select_linear::select_linear;
use upres::tape::{Param, Role, Tape, Var};
use upres::tensor::{DType, Tensor};

/// The definition: each of the `m` rows of a RoI times its class's row of `w`; zeros where a RoI has no class. Then the
/// gradients of x, w and b.
fn naive([m, c, k]: [usize; 3], label: &[i32], [x, w, b, dy]: [&[f64]; 4]) -> [Vec<f64>; 4] {
    let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
    let (mut dw, mut db) = (vec![0.0; w.len()], vec![0.0; b.len()]);
    for row in 0..dy.len() {
        let Some(l) = usize::try_from(label[row / m]).ok().filter(|&l| l < k) else { continue };
        y[row] = b[l] + (0..c).map(|j| x[row * c + j] * w[l * c + j]).sum::<f64>();
        db[l] += dy[row];
        for j in 0..c {
            dx[row * c + j] = dy[row] * w[l * c + j];
            dw[l * c + j] += dy[row] * x[row * c + j];
        }
    }
    [y, dx, dw, db]
}

/// R, M, C, K.
const CASES: &[Case] = &[
    case("empty", &[0, 4, 3, 2]),
    case("no_rows", &[3, 0, 4, 2]),
    case("no_channels", &[3, 2, 0, 2]),
    case("no_class", &[3, 2, 5, 0]),
    case("one", &[1, 1, 1, 1]),
    case("tail", &[5, 9, 19, 3]),     // channels that fill no vector
    case("vectors", &[4, 33, 40, 3]), // and some that do; rows beyond a block
    case("chunks", &[3, 300, 72, 5]), // more than one partial sum
    case("many", &[70, 3, 8, 4]),     // more than the fold's warps
    case("head", &[6, 784, 256, 80]),
];

fn labels(r: usize, k: usize) -> Vec<i32> {
    integers(5, r, -1, k as i32 + 1) // K itself is no class
}

/// Returns y, dx, dw and db; w and b are parameters that are used twice.
fn run(dev: &Device, case: &Case, x_of: impl Fn(&Device, &[usize], &[f32]) -> Tensor) -> Result<Vec<Tensor>> {
    let [r, m, c, k] = case.dims.try_into().unwrap();
    let param = |shape: &[usize], seed| -> Result<Param> {
        let p = Param::new("p", Role::Weight, tensor(dev, shape, &uniform(seed, shape.iter().product(), -1.0, 1.0)));
        p.set_grad(Some(Tensor::zeros(dev, shape, DType::F32)?))?;
        Ok(p)
    };
    let (weight, bias) = (param(&[k, c], 2)?, param(&[k], 3)?);
    let label = tensor(dev, &[r], &labels(r, k));
    let mut tape = Tape::new(dev);
    let (w, b) = (tape.param(&weight), tape.param(&bias));
    let (mut out, mut roots, mut inputs): (Vec<Tensor>, Vec<(Var, Tensor)>, Vec<Var>) = Default::default();
    for seed in [1, 11] {
        let x = tape.leaf(x_of(dev, &[r, m, 1, c], &uniform(seed, r * m * c, -1.0, 1.0)));
        let y = select_linear(&mut tape, &x, &w, &b, &label)?;
        assert_eq!(y.shape(), [r, m, 1]);
        let dy = tensor(dev, y.shape(), &uniform(seed + 4, r * m, -1.0, 1.0));
        out.push(y.value().clone());
        roots.push((y, dy));
        inputs.push(x);
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
        let [r, m, c, k]: [usize; 4] = case.dims.try_into().unwrap();
        let out = everywhere(|dev| run(dev, case, tensor));
        let (w, b) = (wide(&uniform(2, k * c, -1.0, 1.0)), wide(&uniform(3, k, -1.0, 1.0)));
        let label = labels(r, k);
        let pass = |seed: u64| {
            let (x, dy) = (wide(&uniform(seed, r * m * c, -1.0, 1.0)), wide(&uniform(seed + 4, r * m, -1.0, 1.0)));
            naive([m, c, k], &label, [&x, &w, &b, &dy])
        };
        let ([y0, dx0, mut dw, mut db], [y1, dx1, dw1, db1]) = (pass(1), pass(11));
        dw.iter_mut().zip(dw1).for_each(|(sum, more)| *sum += more);
        db.iter_mut().zip(db1).for_each(|(sum, more)| *sum += more);
        for (i, want) in [&y0, &y1, &dx0, &dx1, &dw, &db].into_iter().enumerate() {
            let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len().max(1) as f64).sqrt();
            assert_close(&format!("{}: output {i}", case.name), &out[i].f32s(), want, 3e-6 * rms, 3e-6);
        }
    }
}

#[test]
fn in_16_bits() {
    // y and the gradients of w and b are f32. dx has the type of x and is rounded once.
    for case in &CASES[4..9] {
        in_halves(1.0, |dev, halves| run(dev, case, |dev, shape, x| halves.tensor(dev, shape, x)));
    }
}

/// With a label that is no class, x is not read and nothing has a gradient.
#[test]
fn rows_without_a_class() {
    let out = everywhere(|dev| {
        let mut tape = Tape::new(dev);
        let x = tape.leaf(tensor(dev, &[3, 2, 4], &[f32::NAN; 24]));
        let (w, b) = (tape.leaf(tensor(dev, &[2, 4], &[1.0f32; 8])), tape.leaf(tensor(dev, &[2], &[1.0f32; 2])));
        let y = select_linear(&mut tape, &x, &w, &b, &tensor(dev, &[3], &[-1, 2, i32::MIN]))?;
        let mut out = vec![y.value().clone()];
        let grads = tape.backward(vec![(y, tensor(dev, &[3, 2], &[f32::NAN; 6]))])?;
        out.extend([&x, &w, &b].map(|v| grads.get(v).expect("a gradient").clone()));
        Ok(out)
    });
    assert!(out.iter().all(|t| t.f32s().iter().all(|&v| v == 0.0)));
}

#[test]
fn nan_goes_through() {
    let out = everywhere(|dev| {
        let mut tape = Tape::new(dev);
        let mut data = uniform(1, 2 * 3 * 70, -1.0, 1.0);
        data[70] = f32::NAN;
        let x = tape.leaf(tensor(dev, &[2, 3, 70], &data));
        let w = tape.leaf(tensor(dev, &[2, 70], &uniform(2, 140, -1.0, 1.0)));
        let b = tape.constant(tensor(dev, &[2], &[0.0f32; 2]));
        let y = select_linear(&mut tape, &x, &w, &b, &tensor(dev, &[2], &[1, 0]))?;
        let mut out = vec![y.value().clone()];
        let grads = tape.backward(vec![(y, tensor(dev, &[2, 3], &[1.0f32; 6]))])?;
        out.push(grads.get(&w).expect("dw").clone());
        Ok(out)
    });
    let places =
        |i: usize| out[i].f32s().iter().enumerate().filter(|(_, v)| v.is_nan()).map(|(i, _)| i).collect::<Vec<_>>();
    assert_eq!((places(0), places(1)), (vec![1], vec![70]));
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let mut leaf = |shape: &[usize]| tape.leaf(Tensor::zeros(&dev, shape, DType::F32).unwrap());
    let (x, w, b, wrong) = (leaf(&[3, 2, 4]), leaf(&[5, 4]), leaf(&[5]), leaf(&[4]));
    let mut run = |x, w, b, label: &[usize], dtype| {
        let label = Tensor::zeros(&dev, label, dtype).unwrap();
        select_linear(&mut tape, x, w, b, &label).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(run(&x, &w, &b, &[3], DType::I32), Ok(()));
    assert!(run(&w, &x, &b, &[3], DType::I32).unwrap_err().starts_with("select_linear: w"));
    assert!(run(&b, &w, &b, &[3], DType::I32).unwrap_err().starts_with("select_linear: x"));
    assert!(run(&x, &w, &wrong, &[3], DType::I32).unwrap_err().starts_with("select_linear: b"));
    assert!(run(&x, &w, &b, &[2], DType::I32).unwrap_err().starts_with("select_linear: label"));
    assert!(run(&x, &w, &b, &[3], DType::F32).unwrap_err().starts_with("select_linear: label"));
}
