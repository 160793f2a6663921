//! Softmax over the last dimension, against its definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::softmax::softmax;

/// The definition, one row: `exp(x - max) / sum of exp(x - max)`.
fn naive(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
    row.iter().map(|x| (x - max).exp() / sum).collect()
}

/// M, K.
const CASES: &[Case] = &[
    case("no_rows", &[0, 81]),
    case("no_classes", &[3, 0]),
    case("one_class", &[5, 1]), // 1 whatever the logit
    case("tail", &[7, 33]),
    case("long", &[2, 5000]), // a row longer than a task
    case("warp", &[8, 64]),   // a block's rows, each two warps long
    case("coco", &[2000, 81]),
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [m, k] = c.dims.try_into().unwrap();
        for scale in [1.0, 100.0] {
            let x = uniform(1, m * k, -scale, scale);
            let out = everywhere(|dev| Ok(vec![softmax(&tensor(dev, &[m, k], &x))?]));
            let want: Vec<f64> = wide(&x).chunks(k.max(1)).flat_map(naive).collect();
            // x - max is rounded (by 8e-6 at 200), and the exponential turns this into a relative error.
            assert_close(c.name, &out[0].f32s(), &want, 1e-37, 2e-5);
        }
    }
}

#[test]
fn extreme_rows() {
    let dev = Device::cpu();
    let (inf, max) = (f32::INFINITY, f32::MAX);
    let x = [[max, -max, 0.0], [-inf, 0.0, -inf], [f32::NAN, 0.0, 0.0], [inf, 0.0, 0.0], [-inf; 3], [-1e4, -inf, -1e4]]
        .concat();
    let y = everywhere(|dev| Ok(vec![softmax(&tensor(dev, &[6, 3], &x))?]))[0].f32s();
    assert_eq!(y[..6], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    assert!(y[6..9].iter().all(|y| y.is_nan()), "a NaN is not hidden");
    assert!(y[12..15].iter().all(|y| y.is_nan()), "no class is possible");
    assert_eq!(y[15..], [0.5, 0.0, 0.5]);
    assert!(softmax(&tensor(&dev, &[], &[0.0f32])).is_err());
    // Tensors may have any number of dimensions; rows are along the last.
    assert_eq!(softmax(&tensor(&dev, &[6, 1, 3], &x)).unwrap().shape(), [6, 1, 3]);
}
