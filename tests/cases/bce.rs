//! Binary cross-entropy on logits and the targets of the RPN, against the definition and mmdetection.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::bce::bce;
use upres::ops::rpn_targets::rpn_targets;
use upres::tape::Tape;

fn naive(x: &[f64], target: &[i32], avg: f32, weight: f32) -> f64 {
    let each = x.iter().zip(target).map(|(x, t)| match t {
        1 => (-x).exp().ln_1p(),
        0 => x.exp().ln_1p(),
        _ => 0.0,
    });
    each.sum::<f64>() * f64::from(weight) / f64::from(avg)
}

/// Number of logits.
const CASES: &[Case] = &[
    case("empty", &[0]),
    case("one", &[1]),
    case("tail", &[33]),
    case("faster_rpn", &[512]),
    case("block", &[4096]),   // one block of a GPU, full: no fold
    case("blocks", &[4097]),  // one element more
    case("tasks", &[10_000]), // more than two parallel tasks
];

/// Loss and gradient.
fn run(x: &[f32], shape: &[usize], target: &[i32], avg: f32, weight: f32, dy: f32) -> (f32, Vec<f32>) {
    let out = everywhere(|dev| {
        let mut tape = Tape::new(dev);
        let x = tape.leaf(tensor(dev, shape, x));
        let (target, avg) = (tensor(dev, &[target.len()], target), tensor(dev, &[1], &[avg]));
        let loss = bce(&mut tape, &x, &target, &avg, weight)?;
        let value = loss.value().clone();
        let grads = tape.backward(vec![(loss, tensor(dev, &[1], &[dy]))])?;
        Ok(vec![value, grads.get(&x).expect("dx").clone()])
    });
    assert!(out[0].shape() == [1] && out[1].shape() == shape);
    (out[0].f32s()[0], out[1].f32s())
}

#[test]
fn loss_and_gradient_equal_the_definition() {
    for c in CASES {
        let m = c.dims[0];
        let (x, target) = (uniform(1, m, -6.0, 6.0), integers(2, m, -1, 2));
        let (loss, dx) = run(&x, &[m, 1], &target, 513.0, 0.5, 2.0);
        assert_close(c.name, &[loss], &[naive(&wide(&x), &target, 513.0, 0.5)], 1e-7, 1e-6);
        assert_gradient(c.name, &x, &dx, 1e-8, 1e-5, |x| 2.0 * naive(x, &target, 513.0, 0.5));
    }
}

#[test]
fn saturated_logits() {
    let x = [100.0, -100.0, 100.0, -100.0, 1e4, f32::MAX, -f32::MAX, 100.0];
    let target = [1, 0, 0, 1, 0, 1, 0, -1];
    let (loss, dx) = run(&x, &[8], &target, 1.0, 1.0, 1.0);
    assert_eq!(loss, 100.0 + 100.0 + 1e4);
    // A confident correct logit: the gradient is e^-100, neither 0 nor the rounding of 1 - 1.
    let tiny = (-100.0f64).exp();
    assert_close("saturated", &dx, &[-tiny, tiny, 1.0, -1.0, 1.0, 0.0, 0.0, 0.0], 1e-44, 1e-5);
}

#[test]
fn what_is_ignored_may_be_anything() {
    let nan = f32::NAN;
    let (loss, dx) = run(&[nan, f32::INFINITY, 0.0, nan], &[4], &[-1, -1, 1, 2], 1.0, 1.0, 1.0);
    assert_close("ignored", &[loss], &[2f64.ln()], 0.0, 1e-6);
    assert_eq!(dx, [0.0, 0.0, -0.5, 0.0]);
    let (loss, dx) = run(&[nan, 1.0], &[2], &[1, 1], 1.0, 1.0, 1.0);
    assert!(loss.is_nan() && dx[0].is_nan() && dx[1].is_finite(), "a NaN that counts is seen");
    for (x, target, seen) in [(f32::INFINITY, 1, nan), (f32::NEG_INFINITY, 1, f32::INFINITY), (f32::INFINITY, 0, nan)] {
        let (loss, _) = run(&[x], &[1], &[target], 1.0, 1.0, 1.0);
        assert!(!loss.is_finite() && loss.is_nan() == seen.is_nan(), "{x} with target {target}: {loss}");
    }
}

#[test]
fn equals_mmdetection() {
    let f = OpFixture::open("losses");
    // In the fixture label 0 is the object and 1 the background.
    let counted = f.f32("rpn_bce.weight");
    let target: Vec<i32> =
        f.i32("rpn_bce.label").iter().zip(&counted).map(|(&l, &w)| if w == 0.0 { -1 } else { 1 - l }).collect();
    assert!([-1, 0, 1].iter().all(|t| target.contains(t)));
    let (loss, dx) = run(&f.f32("rpn_bce.x"), &[50, 1], &target, 23.0, 1.0, 1.0);
    assert_close("loss", &[loss], &wide(&f.f32("rpn_bce.loss")), 0.0, 1e-6);
    assert_close("dx", &dx, &wide(&f.f32("rpn_bce.dx")), 1e-8, 1e-6);
}

#[test]
fn targets_of_samples() {
    let out = everywhere(|dev| {
        let gt = tensor(dev, &[2, 3], &[3, -1, -1, 0, -1, -1]);
        let idx = tensor(dev, &[2, 3], &[9, 0, -1, 1, 2, -1]);
        let (target, label) = rpn_targets(&gt, &idx)?;
        Ok(vec![target, label])
    });
    assert_eq!(out[0].i32s(), [1, 0, -1, 1, 0, -1]);
    assert_eq!(out[1].i32s(), [0, -1, -1, 0, -1, -1]);
    let dev = Device::cpu();
    let none = tensor::<i32>(&dev, &[2, 0], &[]);
    assert_eq!(rpn_targets(&none, &none).unwrap().0.shape(), [0]);
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(tensor(&dev, &[2], &[0.0f32; 2]));
    let avg = tensor(&dev, &[1], &[1.0f32]);
    let e = bce(&mut tape, &x, &tensor(&dev, &[3], &[0; 3]), &avg, 1.0).unwrap_err().to_string();
    assert!(e.starts_with("bce: target: want [2]"), "{e}");
    let e = bce(&mut tape, &x, &tensor(&dev, &[2], &[0; 2]), x.value(), 1.0).unwrap_err().to_string();
    assert!(e.starts_with("bce: avg: want [1]"), "{e}");
}
