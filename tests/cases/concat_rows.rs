//! Concatenation of rows and the gradients of its parts: copies, so equal to the bit.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::concat_rows::concat_rows;
use upres::tape::{Param, Role, Tape};
use upres::tensor::{DType, Tensor};

/// N, width, then rows of each input.
const CASES: &[Case] = &[
    case("empty", &[0, 4, 3, 2]),                             // no image
    case("no_rows", &[2, 4, 0]),                              // inputs without rows, one of them alone
    case("one", &[1, 1, 1]),                                  // one row of one
    case("tail", &[3, 5, 7, 0, 1, 13]),                       // odd sizes, an empty one among them
    case("rpn_scores", &[2, 1, 37632, 9408, 2352, 588, 147]), // five levels of 3 anchors at 448, 2 images
    case("rpn_boxes", &[2, 4, 37632, 9408, 2352, 588, 147]),  // their four deltas
];

/// Returns y, then the gradient of each input. The second input is a parameter that has a gradient already.
fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let (n, width) = (case.dims[0], case.dims[1]);
    let mut tape = Tape::new(device);
    let (mut inputs, mut params) = (Vec::new(), Vec::new());
    for (i, rows) in case.dims[2..].iter().enumerate() {
        let shape = [n, *rows, 1, width];
        let data = uniform(1 + i as u64, shape.iter().product(), -1.0, 1.0);
        let value = Tensor::from_slice(device, &shape, &data)?;
        if i == 1 {
            let p = Param::new("p", Role::Weight, value);
            p.set_grad(Some(Tensor::zeros(device, &shape, DType::F32)?))?;
            inputs.push(tape.param(&p));
            params.push(p);
        } else {
            inputs.push(tape.leaf(value));
        }
    }
    let y = concat_rows(&mut tape, &inputs.iter().collect::<Vec<_>>(), width)?;
    let dy = Tensor::from_slice(device, y.shape(), &uniform(0, y.value().numel(), -1.0, 1.0))?;
    let value = y.value().clone();
    let grads = tape.backward(vec![(y, dy)])?;
    let mut out = vec![value];
    for (i, v) in inputs.iter().enumerate() {
        let grad = if i == 1 { params[0].grad().clone() } else { grads.get(v).cloned() };
        out.push(grad.expect("a gradient"));
    }
    Ok(out)
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let (n, width, rows) = (case.dims[0], case.dims[1], &case.dims[2..]);
        let out = everywhere(|dev| run(dev, case));
        assert_eq!(out[0].shape(), [n, rows.iter().sum(), width]);
        let inputs: Vec<Vec<f32>> =
            rows.iter().enumerate().map(|(i, r)| uniform(1 + i as u64, n * r * width, -1.0, 1.0)).collect();
        let dy = uniform(0, out[0].f32s().len(), -1.0, 1.0);
        let (mut y, mut grads) = (Vec::new(), vec![Vec::new(); rows.len()]);
        for image in 0..n {
            for (i, r) in rows.iter().enumerate() {
                let part = r * width;
                grads[i].extend_from_slice(&dy[y.len()..][..part]);
                y.extend_from_slice(&inputs[i][image * part..][..part]);
            }
        }
        assert!(out[0].f32s() == y, "{}: y", case.name);
        for (got, want) in out[1..].iter().zip(&grads) {
            assert!(got.f32s() == *want, "{}: gradient", case.name);
        }
    }
}

#[test]
fn in_16_bits() {
    // One case whose rows fill vectors of 16 bits, and one whose rows do not.
    for (width, rows) in [(4, [600, 32]), (1, [601, 30])] {
        in_halves(0.5, |dev, halves| {
            let mut tape = Tape::new(dev);
            let mut leaf = |seed, rows: usize| {
                let shape = [3, rows, width];
                tape.leaf(halves.tensor(dev, &shape, &uniform(seed, 3 * rows * width, -1.0, 1.0)))
            };
            let inputs = [leaf(1, rows[0]), leaf(2, rows[1])];
            let y = concat_rows(&mut tape, &[&inputs[0], &inputs[1]], width)?;
            let dy = halves.tensor(dev, y.shape(), &uniform(3, y.value().numel(), -1.0, 1.0));
            let value = y.value().clone();
            let grads = tape.backward(vec![(y, dy)])?;
            let grad = |i: usize| grads.get(&inputs[i]).expect("a gradient").clone();
            Ok(vec![value, grad(0), grad(1)])
        });
    }
}

/// If one parameter is used twice, its gradients add up.
#[test]
fn adds_to_a_parameter() {
    let dev = Device::cpu();
    let p = Param::new("p", Role::Weight, Tensor::from_slice(&dev, &[1, 2], &[1.0f32, 2.0]).unwrap());
    p.set_grad(Some(Tensor::zeros(&dev, &[1, 2], DType::F32).unwrap())).unwrap();
    let mut tape = Tape::new(&dev);
    let v = tape.param(&p);
    let y = concat_rows(&mut tape, &[&v, &v], 1).unwrap();
    let dy = Tensor::from_slice(&dev, &[1, 4, 1], &[1.0f32, 2.0, 30.0, 40.0]).unwrap();
    tape.backward(vec![(y, dy)]).unwrap();
    assert_eq!(p.grad().as_ref().unwrap().f32s(), [31.0, 42.0]);
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let mut leaf = |shape: &[usize]| tape.leaf(Tensor::zeros(&dev, shape, DType::F32).unwrap());
    let (a, b, scalar) = (leaf(&[2, 3]), leaf(&[1, 3]), leaf(&[]));
    for (inputs, width) in [(&[][..], 1), (&[&a], 2), (&[&a, &b], 3), (&[&a], 0), (&[&scalar], 1)] {
        assert!(concat_rows(&mut tape, inputs, width).is_err(), "{inputs:?} in rows of {width}");
    }
}
