//! Smooth L1 loss of class-specific or class-agnostic deltas, against the definition and mmdetection.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::smooth_l1::smooth_l1;
use upres::tape::Tape;

struct Problem<'a> {
    deltas: &'a [f32],
    targets: &'a [f32],
    labels: &'a [i32],
    k: usize,
    beta: f32,
    avg: f32,
    weight: f32,
}

impl Problem<'_> {
    fn naive(&self, deltas: &[f64]) -> f64 {
        let mut sum = 0.0;
        for (r, &label) in self.labels.iter().enumerate() {
            if !(0..self.k as i32).contains(&label) {
                continue;
            }
            for j in 0..4 {
                let e = (deltas[(r * self.k + label as usize) * 4 + j] - f64::from(self.targets[4 * r + j])).abs();
                let beta = f64::from(self.beta);
                sum += if e < beta { 0.5 * e * e / beta } else { e - 0.5 * beta };
            }
        }
        sum * f64::from(self.weight) / f64::from(self.avg)
    }

    /// Loss and gradient of twice the loss.
    fn run(&self) -> (f32, Vec<f32>) {
        let m = self.labels.len();
        let out = everywhere(|dev| {
            let mut tape = Tape::new(dev);
            let x = tape.leaf(tensor(dev, &[m, 4 * self.k], self.deltas));
            let (targets, labels) = (tensor(dev, &[m, 4], self.targets), tensor(dev, &[m], self.labels));
            let avg = tensor(dev, &[1], &[self.avg]);
            let loss = smooth_l1(&mut tape, &x, &targets, &labels, self.beta, &avg, self.weight)?;
            let value = loss.value().clone();
            let grads = tape.backward(vec![(loss, tensor(dev, &[1], &[2.0f32]))])?;
            Ok(vec![value, grads.get(&x).expect("dx").clone()])
        });
        assert_eq!(out[0].shape(), [1]);
        (out[0].f32s()[0], out[1].f32s())
    }
}

/// M, K.
const CASES: &[Case] = &[
    case("empty", &[0, 80]),
    case("one", &[1, 1]),
    case("agnostic", &[300, 1]), // more than one parallel task
    case("tail", &[37, 3]),
    case("faster_coco", &[1024, 80]),
    case("blocks", &[2050, 2]), // more rows than a block of a GPU has
];

const BETAS: [f32; 3] = [0.0, 1.0 / 9.0, 1.0];

#[test]
fn loss_and_gradient_equal_the_definition() {
    for c in CASES {
        let [m, k] = c.dims.try_into().unwrap();
        let (deltas, targets) = (uniform(1, m * 4 * k, -1.5, 1.5), uniform(2, 4 * m, -1.5, 1.5));
        let labels = integers(3, m, -1, k as i32 + 1); // -1 and the background among them
        for beta in BETAS {
            let p = Problem { deltas: &deltas, targets: &targets, labels: &labels, k, beta, avg: 512.0, weight: 0.5 };
            let (loss, dx) = p.run();
            assert_close(c.name, &[loss], &[p.naive(&wide(&deltas))], 1e-9, 1e-6);
            assert_gradient(c.name, &deltas, &dx, 1e-8, 1e-4, |x| 2.0 * p.naive(x));
            let touched = dx.chunks(4).enumerate().filter(|(_, d)| d.iter().any(|&d| d != 0.0)).map(|(i, _)| i);
            let groups = labels.iter().enumerate().filter(|(_, l)| (0..k as i32).contains(*l));
            assert!(touched.eq(groups.map(|(r, &l)| r * k + l as usize)), "{}: only the labelled groups", c.name);
        }
    }
}

#[test]
fn kinks_and_huge_errors() {
    let deltas = [0.0, 1.0, -1.0, 1e30, f32::INFINITY, -f32::MAX, 0.5, -0.5];
    let run = |beta| {
        let p = Problem { deltas: &deltas, targets: &[0.0; 8], labels: &[0, 0], k: 1, beta, avg: 1.0, weight: 0.5 };
        p.run()
    };
    let (loss, dx) = run(0.0);
    assert_eq!(loss, f32::INFINITY);
    assert_eq!(dx, [0.0, 1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0]); // as torch: 0 at 0
    assert_eq!(run(1.0).1, [0.0, 1.0, -1.0, 1.0, 1.0, -1.0, 0.5, -0.5]);
}

#[test]
fn what_is_ignored_may_be_anything() {
    let nan = f32::NAN;
    let deltas = [[nan; 4], [nan; 4], [1.0; 4], [nan; 4], [nan; 4], [nan; 4]].concat();
    let targets = [[nan; 4], [0.0; 4], [f32::INFINITY; 4]].concat();
    let p = Problem { deltas: &deltas, targets: &targets, labels: &[-1, 0, 2], k: 2, beta: 0.0, avg: 4.0, weight: 1.0 };
    let (loss, dx) = p.run();
    assert_eq!(loss, 1.0);
    assert_eq!(dx, [[0.0; 4], [0.0; 4], [0.5; 4], [0.0; 4], [0.0; 4], [0.0; 4]].concat());
    let seen = Problem { labels: &[-1, 1, 2], ..p }.run();
    assert!(seen.0.is_nan() && seen.1[12..16].iter().all(|d| d.is_nan()), "a NaN that counts is seen");
}

#[test]
fn equals_mmdetection() {
    let f = OpFixture::open("losses");
    let (deltas, targets, weights) = (f.f32("reg.x"), f.f32("reg.target"), f.f32("reg.weight"));
    let labels: Vec<i32> = weights.chunks(4).map(|w| if w == [1.0; 4] { 0 } else { -1 }).collect();
    assert_eq!(labels.iter().filter(|l| **l == 0).count() * 4, weights.iter().sum::<f32>() as usize);
    for (key, beta) in [("l1", 0.0), ("smooth_beta1_9", 1.0 / 9.0), ("smooth_beta1", 1.0)] {
        let p = Problem { deltas: &deltas, targets: &targets, labels: &labels, k: 1, beta, avg: 17.0, weight: 1.0 };
        let (loss, dx) = p.run();
        assert_close(key, &[loss], &wide(&f.f32(&format!("reg.{key}.loss"))), 0.0, 1e-6);
        let want: Vec<f64> = wide(&f.f32(&format!("reg.{key}.dx"))).iter().map(|d| 2.0 * d).collect();
        assert_close(key, &dx, &want, 1e-8, 1e-6);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let avg = tensor(&dev, &[1], &[1.0f32]);
    let (targets, labels) = (tensor(&dev, &[2, 4], &[0.0f32; 8]), tensor(&dev, &[2], &[0; 2]));
    let five = tape.leaf(tensor(&dev, &[2, 5], &[0.0f32; 10]));
    let e = smooth_l1(&mut tape, &five, &targets, &labels, 0.0, &avg, 1.0).unwrap_err().to_string();
    assert!(e.starts_with("smooth_l1: deltas: want [..,4K]"), "{e}");
    let x = tape.leaf(tensor(&dev, &[2, 4], &[0.0f32; 8]));
    for beta in [-1.0, f32::NAN] {
        assert!(smooth_l1(&mut tape, &x, &targets, &labels, beta, &avg, 1.0).is_err());
    }
    let e = smooth_l1(&mut tape, &x, &avg, &labels, 0.0, &avg, 1.0).unwrap_err().to_string();
    assert!(e.starts_with("smooth_l1: targets: want [8]"), "{e}");
}
