//! Targets of sampled anchors, against their definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::rpn_targets::rpn_targets;

/// Target and box label of one sample.
fn naive(gt: i32, idx: i32) -> (i32, i32) {
    if idx < 0 {
        (-1, -1) // padding
    } else if gt >= 0 {
        (1, 0) // positive: it has a box target, in the only column group
    } else {
        (0, -1)
    }
}

/// B, S.
const CASES: &[Case] = &[
    case("no_image", &[0, 4]),
    case("no_sample", &[3, 0]),
    case("one", &[1, 1]),
    case("tail", &[3, 37]),
    case("recipe", &[8, 256]), // several blocks
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, s] = c.dims.try_into().unwrap();
        let (gt, idx) = (integers(1, b * s, -1, 5), integers(2, b * s, -1, 3));
        let out = everywhere(|dev| {
            let (target, label) = rpn_targets(&tensor(dev, &[b, s], &gt), &tensor(dev, &[b, s], &idx))?;
            Ok(vec![target, label])
        });
        let want: Vec<(i32, i32)> = gt.iter().zip(&idx).map(|(&gt, &idx)| naive(gt, idx)).collect();
        assert_eq!(out[0].i32s(), want.iter().map(|w| w.0).collect::<Vec<_>>(), "{}", c.name);
        assert_eq!(out[1].i32s(), want.iter().map(|w| w.1).collect::<Vec<_>>(), "{}", c.name);
    }
}
