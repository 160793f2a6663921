//! Boxes of candidates, against the definition: ground truth, then proposals.

use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::boxes_with_gt::boxes_with_gt;

/// The candidates of one image.
fn naive(proposals: &[f32], truth: &[f32]) -> Vec<f32> {
    [truth, proposals].concat()
}

/// B, P, G.
const CASES: &[Case] = &[
    case("empty", &[2, 0, 0]),
    case("no_proposal", &[2, 0, 3]),
    case("no_truth", &[2, 5, 0]),
    case("one", &[1, 1, 1]),
    case("tail", &[3, 37, 5]),
    case("recipe", &[8, 1000, 96]), // several blocks
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, p, g] = c.dims.try_into().unwrap();
        let (proposals, truth) = (boxes(1, b * p, 64.0), boxes(2, b * g, 64.0));
        let out = everywhere(|dev| {
            Ok(vec![boxes_with_gt(&tensor(dev, &[b, p, 4], &proposals), &tensor(dev, &[b, g, 4], &truth))?])
        });
        let want = (0..b).flat_map(|i| naive(&proposals[i * p * 4..][..p * 4], &truth[i * g * 4..][..g * 4]));
        assert_eq!(out[0].f32s(), want.collect::<Vec<f32>>(), "{}", c.name);
    }
}

#[test]
fn ground_truth_goes_in_front() {
    let out = everywhere(|dev| {
        Ok(vec![boxes_with_gt(&tensor(dev, &[2, 1, 4], &[1.0f32; 8]), &tensor(dev, &[2, 1, 4], &[2.0f32; 8]))?])
    });
    assert_eq!(out[0].f32s()[..8], [2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]);
}
