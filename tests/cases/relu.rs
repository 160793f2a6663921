//! ReLU and its gradient: exact, so equal to the bit.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::relu::relu;
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

/// Any shape.
const CASES: &[Case] = &[
    case("empty", &[0, 8]),
    case("one", &[1]),
    case("tail", &[3, 5, 7]),                // fills no vector
    case("chunks", &[2, 91, 97, 3]),         // several chunks, the last one odd
    case("retinanet_p6", &[2, 13, 21, 256]), // 800 by 1333 pixels
];

fn inputs(case: &Case) -> (Vec<f32>, Vec<f32>) {
    let n = case.dims.iter().product();
    (uniform(1, n, -1.0, 1.0), uniform(2, n, -1.0, 1.0))
}

/// Returns y, dx and, if dy is also held elsewhere, dy after the backward pass.
fn run_case(dev: &Device, shape: &[usize], x: &[f32], dy: &[f32], shared: bool) -> Result<Vec<Tensor>> {
    let mut tape = Tape::new(dev);
    let x = tape.leaf(tensor(dev, shape, x));
    let y = relu(&mut tape, &x)?;
    let value = y.value().clone();
    let dy = tensor(dev, shape, dy);
    let held = shared.then(|| dy.clone());
    let grads = tape.backward(vec![(y, dy)])?;
    let mut out = vec![value, grads.get(&x).expect("dx").clone()];
    out.extend(held);
    Ok(out)
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let (x, dy) = inputs(case);
        let y: Vec<f32> = x.iter().map(|x| x.max(0.0)).collect();
        let dx: Vec<f32> = x.iter().zip(&dy).map(|(&x, &dy)| if x > 0.0 { dy } else { 0.0 }).collect();
        // A dy that is held elsewhere stays unchanged, and dx is the same.
        let alone = everywhere(|dev| run_case(dev, case.dims, &x, &dy, false));
        let shared = everywhere(|dev| run_case(dev, case.dims, &x, &dy, true));
        assert!(alone[..] == shared[..2] && shared[2].f32s() == dy, "{}: somebody else's dy", case.name);
        assert!(alone[0].f32s() == y && alone[1].f32s() == dx, "{}", case.name);
    }
}

#[test]
fn gradients_are_the_slopes() {
    let case = &CASES[2];
    let (x, dy) = inputs(case);
    assert!(x.iter().all(|x| x.abs() > 1e-4), "away from the kink");
    let out = run_case(&Device::cpu(), case.dims, &x, &dy, false).unwrap();
    assert_gradient(case.name, &x, out[1].f32s(), 1e-6, 1e-6, |x| {
        x.iter().zip(&dy).map(|(&x, &dy)| f64::from(dy) * x.max(0.0)).sum()
    });
}

/// Both zeros, the largest numbers, and NaN, which the opposite comparison would hide.
#[test]
fn kink_and_ends() {
    let x = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -1e-40];
    let out = everywhere(|dev| run_case(dev, &[7], &x, &[2.0; 7], false));
    let (y, dx) = (out[0].f32s(), out[1].f32s());
    assert!(y[4].is_nan() && dx[4] == 2.0, "NaN is hidden");
    assert_eq!([y[0], y[1], y[2], y[3], y[5], y[6]], [0.0, 0.0, f32::INFINITY, 0.0, 1e-40, 0.0]);
    assert_eq!([dx[0], dx[1], dx[2], dx[3], dx[5], dx[6]], [0.0, 0.0, 2.0, 0.0, 2.0, 0.0]);
}

#[test]
fn in_16_bits() {
    for shape in [&[3, 5, 7][..], &[17, 64]] {
        let n = shape.iter().product();
        for shared in [false, true] {
            in_halves(0.0, |dev, halves| {
                let mut tape = Tape::new(dev);
                let x = halves.tensor(dev, shape, &uniform(1, n, -1.0, 1.0));
                let dy = halves.tensor(dev, shape, &uniform(2, n, -1.0, 1.0));
                let held = shared.then(|| dy.clone());
                let x = tape.leaf(x);
                let y = relu(&mut tape, &x)?;
                let value = y.value().clone();
                let dx = tape.backward(vec![(y, dy)])?.get(&x).expect("dx").clone();
                Ok([value, dx].into_iter().chain(held).collect())
            });
        }
    }
}

#[test]
fn saves_its_output_without_a_copy() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(Tensor::zeros(&dev, &[4, 4], DType::F32).unwrap());
    let y = relu(&mut tape, &x).unwrap();
    assert_eq!(tape.saved_bytes(), 4 * 4 * 4);
    assert!(!y.value().is_unique(), "a copy was saved");
    let ints = tape.constant(Tensor::zeros(&dev, &[2], DType::I32).unwrap());
    let error = relu(&mut tape, &ints).unwrap_err().to_string();
    assert!(error.starts_with("relu: x: want f32"), "{error}");
}
