//! The columns of samples that are positives, against their definition.

use super::{Case, case};
use crate::support::tensors::*;
use std::ops::Range;
use upres::device::Device;
use upres::ops::positives::positives;

/// The columns of one image's samples `gt`: each is kept if its sample is positive, and -1 otherwise.
fn naive(gt: &[i32], columns: Range<usize>) -> Vec<i32> {
    columns.map(|k| if gt[k] >= 0 { k as i32 } else { -1 }).collect()
}

/// B, S, first column, columns.
const CASES: &[Case] = &[
    case("no_image", &[0, 4, 0, 2]),
    case("no_column", &[2, 4, 4, 0]),
    case("one", &[1, 1, 0, 1]),
    case("tail", &[3, 37, 5, 11]),
    case("recipe", &[8, 512, 0, 128]), // several blocks
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, s, first, p] = c.dims.try_into().unwrap();
        let gt = integers(1, b * s, -1, 2);
        let out = everywhere(|dev| Ok(vec![positives(&tensor(dev, &[b, s], &gt), first..first + p)?]));
        let want = (0..b).flat_map(|i| naive(&gt[i * s..][..s], first..first + p));
        assert_eq!(out[0].i32s(), want.collect::<Vec<i32>>(), "{}", c.name);
    }
}

#[test]
fn columns_that_are_not_there_are_refused() {
    let gt = tensor(&Device::cpu(), &[1, 4], &[0; 4]);
    assert!(positives(&gt, 2..5).unwrap_err().to_string().starts_with("positives: columns 2..5 of 4 samples"));
}
