//! Softmax cross-entropy and its averaging factors, against the definition and mmdetection.

use super::{Case, case};
use crate::support::fixtures::Fixture;
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::avg_factor::{AvgFactor, avg_factor};
use upres::ops::softmax_ce::softmax_ce;
use upres::tape::Tape;

fn naive(x: &[f64], c: usize, labels: &[i32], avg: f32, weight: f32) -> f64 {
    let rows = x.chunks(c).zip(labels).filter(|(_, l)| (0..c as i32).contains(*l));
    let each = rows.map(|(x, &l)| {
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        x.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + max - x[l as usize]
    });
    each.sum::<f64>() * f64::from(weight) / f64::from(avg)
}

/// M, C (with the background).
const CASES: &[Case] = &[
    case("empty", &[0, 81]),
    case("one_class", &[4, 1]), // no choice: no loss
    case("tail", &[7, 33]),
    case("warp", &[9, 32]),   // rows as long as a warp, one row more than a block has warps
    case("long", &[3, 5000]), // a row longer than a task
    case("faster_coco", &[1024, 81]),
    case("many_rows", &[40_000, 3]), // more rows than the warps of a grid
];

/// Loss and gradient.
fn run(x: &[f32], c: usize, labels: &[i32], avg: f32, weight: f32, dy: f32) -> (f32, Vec<f32>) {
    let m = labels.len();
    let out = everywhere(|dev| {
        let mut tape = Tape::new(dev);
        let x = tape.leaf(tensor(dev, &[m, c], x));
        let (labels, avg) = (tensor(dev, &[m], labels), tensor(dev, &[1], &[avg]));
        let loss = softmax_ce(&mut tape, &x, &labels, &avg, weight)?;
        let value = loss.value().clone();
        let grads = tape.backward(vec![(loss, tensor(dev, &[1], &[dy]))])?;
        Ok(vec![value, grads.get(&x).expect("dx").clone()])
    });
    assert_eq!(out[0].shape(), [1]);
    (out[0].f32s()[0], out[1].f32s())
}

#[test]
fn loss_and_gradient_equal_the_definition() {
    for case in CASES {
        let [m, c] = case.dims.try_into().unwrap();
        let (x, labels) = (uniform(1, m * c, -4.0, 4.0), integers(2, m, -1, c as i32 + 1));
        let (loss, dx) = run(&x, c, &labels, 100.0, 0.25, 3.0);
        assert_close(case.name, &[loss], &[naive(&wide(&x), c, &labels, 100.0, 0.25)], 1e-9, 1e-6);
        assert_gradient(case.name, &x, &dx, 1e-8, 1e-5, |x| 3.0 * naive(x, c, &labels, 100.0, 0.25));
    }
}

#[test]
fn saturated_logits() {
    let x = [[100.0, -100.0, 0.0], [-100.0, 100.0, 100.0], [f32::MAX, -f32::MAX, 0.0], [20.0, -1e4, 0.0]].concat();
    let (loss, dx) = run(&x, 3, &[0, 0, 0, 0], 1.0, 1.0, 1.0);
    assert_close("loss", &[loss], &[200.0 + 2f64.ln()], 0.0, 1e-6);
    // A confident correct row: the gradient of its label is minus the sum of the others, not the rounding of 1 - 1.
    let (tiny, small) = ((-100.0f64).exp(), (-20.0f64).exp());
    let want = [[-tiny, 0.0, tiny], [-1.0, 0.5, 0.5], [0.0; 3], [-small, 0.0, small]].concat();
    assert_close("dx", &dx, &want, 1e-40, 1e-5);
}

#[test]
fn what_is_ignored_may_be_anything() {
    let x = [f32::NAN, f32::INFINITY, 0.0, 0.0, f32::NAN, 0.0];
    let (loss, dx) = run(&x, 2, &[-1, 1, 2], 1.0, 1.0, 1.0);
    assert_close("loss", &[loss], &[2f64.ln()], 0.0, 1e-6);
    assert_eq!(dx, [0.0, 0.0, 0.5, -0.5, 0.0, 0.0]);
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(run(&[bad, 0.0], 2, &[0], 1.0, 1.0, 1.0).0.is_nan(), "{bad} that counts is seen");
    }
}

#[test]
fn equals_mmdetection() {
    let f = OpFixture::open("losses");
    let weights = f.f32("ce.weight");
    let labels: Vec<i32> =
        f.i32("ce.label").iter().zip(&weights).map(|(&l, &w)| if w == 0.0 { -1 } else { l }).collect();
    let avg = weights.iter().sum();
    let (loss, dx) = run(&f.f32("ce.x"), 9, &labels, avg, 1.0, 1.0);
    assert_close("loss", &[loss], &wide(&f.f32("ce.loss")), 0.0, 1e-6);
    assert_close("dx", &dx, &wide(&f.f32("ce.dx")), 1e-8, 1e-5);
}

#[test]
fn normalisers() {
    let factor = |counts: &[i32], kind| {
        let out = everywhere(|dev| Ok(vec![avg_factor(&tensor(dev, &[counts.len() / 2, 2], counts), kind)?]));
        out[0].f32s()[0]
    };
    assert_eq!(factor(&[24, 232, 0, 256], AvgFactor::Rpn), 513.0); // an image without positives counts as one
    assert_eq!(factor(&[24, 232, 256, 0], AvgFactor::Rpn), 513.0);
    assert_eq!(factor(&[24, 232, 0, 256], AvgFactor::Roi), 512.0);
    assert_eq!(factor(&[0, 0, 0, 0], AvgFactor::Roi), 1.0);
    assert_eq!(factor(&[], AvgFactor::Rpn), 1.0);
    assert_eq!(factor(&[24, 232, 0, 256, 3, 0], AvgFactor::Dense), 28.0); // negatives do not count
    assert_eq!(factor(&[], AvgFactor::Dense), 1.0);
    let detector = Fixture::open("detectors/faster");
    for mode in ["pretrain", "finetune", "pretrain_nogt1"] {
        let labels = detector.u8(&format!("{mode}.rpn_labels")); // 0 is the object
        let weights = detector.u8(&format!("{mode}.rpn_label_weights"));
        let mut counts = [0; 4];
        for (i, (&l, _)) in labels.iter().zip(&weights).enumerate().filter(|(_, (_, w))| **w == 1) {
            counts[i / (labels.len() / 2) * 2 + usize::from(l)] += 1;
        }
        let want = detector.value(&format!("{mode}.rpn_avg_factor")).as_f64().unwrap();
        assert_eq!(f64::from(factor(&counts, AvgFactor::Rpn)), want, "{mode}: {counts:?}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(tensor(&dev, &[2, 3], &[0.0f32; 6]));
    let avg = tensor(&dev, &[1], &[1.0f32]);
    let e = softmax_ce(&mut tape, &x, &tensor(&dev, &[3], &[0; 3]), &avg, 1.0).unwrap_err().to_string();
    assert!(e.starts_with("softmax_ce: labels: want [2]"), "{e}");
    let none = tape.leaf(tensor::<f32>(&dev, &[2, 0], &[]));
    assert!(softmax_ce(&mut tape, &none, &tensor(&dev, &[2], &[0; 2]), &avg, 1.0).is_err());
    assert!(avg_factor(&tensor(&dev, &[2, 3], &[0; 6]), AvgFactor::Roi).is_err());
}
