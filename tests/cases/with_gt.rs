//! The assignment with ground truth in front, against its definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::with_gt::with_gt;

/// One image: ground truth `j` is assigned to itself (`j + 1`), a slot without ground truth is -2.
fn naive(assigned: &[i32], count: i32, g: usize) -> Vec<i32> {
    let mut all: Vec<i32> = (0..g as i32).map(|j| if j < count { j + 1 } else { -2 }).collect();
    all.extend(assigned);
    all
}

/// B, P, G.
const CASES: &[Case] = &[
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
        let (assigned, counts) = (integers(1, b * p, -2, 4), integers(2, b, 0, g as i32));
        let out =
            everywhere(|dev| Ok(vec![with_gt(&tensor(dev, &[b, p], &assigned), &tensor(dev, &[b], &counts), g)?]));
        let want: Vec<i32> = (0..b).flat_map(|i| naive(&assigned[i * p..][..p], counts[i], g)).collect();
        assert_eq!(out[0].i32s(), want, "{}", c.name);
    }
}

#[test]
fn ground_truth_goes_in_front() {
    let out =
        everywhere(|dev| Ok(vec![with_gt(&tensor(dev, &[2, 2], &[0, 2, 1, -2]), &tensor(dev, &[2], &[1, 3]), 3)?]));
    assert_eq!(out[0].i32s(), [1, -2, -2, 0, 2, 1, 2, 3, 1, -2]);
}
