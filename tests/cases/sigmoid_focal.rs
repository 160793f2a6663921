//! Sigmoid focal loss and its gradient, against the definition and mmdetection.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::sigmoid_focal::sigmoid_focal;
use upres::tape::Tape;
use upres::tensor::Tensor;

#[derive(Clone, Copy)]
struct How {
    avg: f32,
    alpha: f32,
    gamma: f32,
    weight: f32,
    dy: f32,
}

/// One term of the sum and its derivative.
fn term(x: f64, own: bool, how: How) -> (f64, f64) {
    let alpha = f64::from(how.alpha);
    let (s, a, sign) = if own { (-x, alpha, -1.0) } else { (x, 1.0 - alpha, 1.0) };
    let softplus = s.max(0.0) + (-s.abs()).exp().ln_1p();
    let (p, gamma) = (1.0 / (1.0 + (-s).exp()), f64::from(how.gamma));
    let factor = a * p.powf(gamma);
    (factor * softplus, sign * factor * (p + gamma * softplus / (1.0 + s.exp())))
}

fn naive(x: &[f64], k: usize, labels: &[i32], how: How) -> (f64, Vec<f64>) {
    let scale = f64::from(how.weight) / f64::from(how.avg);
    let mut loss = 0.0;
    let dx = x.iter().enumerate().map(|(i, &x)| {
        let (label, class) = (labels[i / k], (i % k) as i32);
        if !(0..=k as i32).contains(&label) {
            return 0.0;
        }
        let (value, slope) = term(x, label == class, how);
        loss += value;
        f64::from(how.dy) * scale * slope
    });
    let dx = dx.collect();
    (scale * loss, dx)
}

/// M, K.
const CASES: &[Case] = &[
    case("empty", &[0, 80]),
    case("one", &[1, 1]),
    case("tail", &[33, 5]),           // classes that fill no vector of a GPU
    case("vectors", &[70, 80]),       // that do, and fill no block of 128 of the CPU
    case("tasks", &[500, 91]),        // more than two parallel tasks
    case("wide", &[3, 20_000]),       // a row longer than a task, and than a grid
    case("one_class", &[9000, 1]),    // several blocks
    case("retinanet", &[37_665, 80]), // the anchors of an image of 448x448 pixels
];

const RETINANET: How = How { avg: 7.0, alpha: 0.25, gamma: 2.0, weight: 1.0, dy: 1.0 };

/// Loss and gradient.
fn run(x: &[f32], k: usize, labels: &[i32], how: How) -> (f32, Vec<f32>) {
    let out = everywhere(|dev| {
        let mut tape = Tape::new(dev);
        let x = tape.leaf(tensor(dev, &[labels.len(), k], x));
        let (labels, avg) = (tensor(dev, &[labels.len()], labels), tensor(dev, &[1], &[how.avg]));
        let loss = sigmoid_focal(&mut tape, &x, &labels, &avg, how.alpha, how.gamma, how.weight)?;
        let value = loss.value().clone();
        let grads = tape.backward(vec![(loss, tensor(dev, &[1], &[how.dy]))])?;
        Ok(vec![value, grads.get(&x).expect("dx").clone()])
    });
    assert!(out[0].shape() == [1] && out[1].shape() == [labels.len(), k]);
    (out[0].f32s()[0], out[1].f32s())
}

/// Labels in realistic shares: most rows are background, some ignored, few of a class. Some ignored labels are beyond
/// the background's.
fn labels(m: usize, k: usize) -> Vec<i32> {
    let kind = integers(2, m, 0, 12);
    kind.iter()
        .zip(integers(3, m, 0, k as i32))
        .map(|(kind, class)| match kind {
            0 => class,
            1 => -1,
            2 => k as i32 + 1,
            _ => k as i32,
        })
        .collect()
}

#[test]
fn loss_and_gradient_equal_the_definition() {
    for c in CASES {
        let [m, k] = c.dims.try_into().unwrap();
        let (x, labels) = (uniform(1, m * k, -12.0, 6.0), labels(m, k));
        // Exponents other than 2 take another code path: one check suffices for the largest case.
        let all = [2.0, 0.0, 1.0, 1.5];
        for &gamma in if m * k > 1_000_000 { &all[..1] } else { &all[..] } {
            let how = How { avg: 513.0, alpha: 0.25, gamma, weight: 0.5, dy: 2.0 };
            let (loss, dx) = run(&x, k, &labels, how);
            let (want, want_dx) = naive(&wide(&x), k, &labels, how);
            assert_close(c.name, &[loss], &[want], 1e-9, 2e-6);
            assert_close(c.name, &dx, &want_dx, 1e-9, 5e-6);
        }
    }
}

#[test]
fn the_gradient_is_that_of_the_loss() {
    let (m, k) = (12, 7);
    let (x, labels) = (uniform(4, m * k, -5.0, 5.0), integers(5, m, -1, k as i32 + 1));
    for gamma in [0.0, 0.5, 2.0, 3.0] {
        let how = How { gamma, ..RETINANET };
        let (_, dx) = run(&x, k, &labels, how);
        assert_gradient(&format!("gamma {gamma}"), &x, &dx, 1e-7, 1e-5, |x| naive(x, k, &labels, how).0);
    }
}

#[test]
fn saturated_logits() {
    let x = [100.0, -100.0, 100.0, -100.0, 1e4, f32::MAX, -f32::MAX, -40.0];
    let labels = [0, 1, 1, 0, 1, 0, 1, 1];
    let how = How { avg: 1.0, alpha: 0.25, ..RETINANET };
    let (loss, dx) = run(&x, 1, &labels, how);
    assert_close("loss", &[loss], &[0.75 * (100.0 + 1e4) + 0.25 * 100.0], 0.0, 1e-6);
    // Confidently wrong: the slope of the cross-entropy. Confidently right: e^-80 and less, which is negligible.
    assert_close("slopes", &dx, &[0.0, 0.0, 0.75, -0.25, 0.75, 0.0, 0.0, 0.0], 1e-30, 1e-6);
    // With gamma 0 it is the cross-entropy: confidently right, its gradient is e^-100, neither 0 nor the rounding of 1
    // - 1.
    let (_, dx) = run(&x[..4], 1, &labels[..4], How { gamma: 0.0, ..how });
    let tiny = (-100.0f64).exp();
    assert_close("cross-entropy", &dx, &[-0.25 * tiny, 0.75 * tiny, 0.75, -0.25], 2e-44, 1e-6);
}

#[test]
fn what_is_ignored_may_be_anything() {
    let nan = f32::NAN;
    let x = [nan, f32::INFINITY, 0.0, 0.0, nan, nan];
    let (loss, dx) = run(&x, 2, &[-1, 0, 7], How { avg: 1.0, alpha: 0.5, ..RETINANET });
    assert_close("ignored", &[loss], &[0.25 * 2f64.ln()], 0.0, 1e-6);
    assert!(dx[..2] == [0.0; 2] && dx[4..] == [0.0; 2]);
    for gamma in [2.0, 1.5] {
        let (loss, dx) = run(&[nan, 1.0], 1, &[1, 1], How { gamma, ..RETINANET });
        assert!(loss.is_nan() && dx[0].is_nan() && dx[1].is_finite(), "a NaN that counts is seen");
        let (loss, _) = run(&[f32::INFINITY], 1, &[1], How { gamma, ..RETINANET });
        assert!(!loss.is_finite(), "and so is an infinity on the wrong side");
    }
}

#[test]
fn equals_mmdetection() {
    let f = OpFixture::open("focal");
    let (x, weight) = (f.f32("focal.x"), f.f32("focal.weight"));
    let labels: Vec<i32> =
        f.i32("focal.target").iter().zip(&weight).map(|(&l, &w)| if w == 0.0 { -1 } else { l }).collect();
    assert!(labels.contains(&-1) && labels.contains(&6) && labels.contains(&0));
    for (key, avg) in [("af7", 7.0), ("af1", 1.0)] {
        let (loss, dx) = run(&x, 6, &labels, How { avg, ..RETINANET });
        assert_close(key, &[loss], &wide(&f.f32(&format!("focal.{key}.loss"))), 0.0, 1e-6);
        assert_close(key, &dx, &wide(&f.f32(&format!("focal.{key}.dx"))), 1e-7, 2e-6);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(tensor(&dev, &[2, 3], &[0.0f32; 6]));
    let (avg, good) = (tensor(&dev, &[1], &[1.0f32]), tensor(&dev, &[2], &[0; 2]));
    let mut message = |labels: &Tensor, avg: &Tensor, alpha: f32, gamma: f32| {
        sigmoid_focal(&mut tape, &x, labels, avg, alpha, gamma, 1.0).unwrap_err().to_string()
    };
    let e = message(&tensor(&dev, &[3], &[0; 3]), &avg, 0.25, 2.0);
    assert!(e.starts_with("sigmoid_focal: labels: want [2]"), "{e}");
    let e = message(&good, x.value(), 0.25, 2.0);
    assert!(e.starts_with("sigmoid_focal: avg: want [1]"), "{e}");
    assert!(message(&good, &avg, 1.5, 2.0).starts_with("sigmoid_focal: alpha 1.5"));
    for gamma in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(message(&good, &avg, 0.25, gamma).starts_with("sigmoid_focal: gamma"));
    }
}
