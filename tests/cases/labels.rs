//! Classes of sampled boxes, against their definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::labels::labels;

/// Class of one sample of an image with the classes `truth`.
fn naive(gt: i32, idx: i32, truth: &[i32], background: i32) -> i32 {
    if idx < 0 {
        return -1;
    }
    truth.get(usize::try_from(gt).unwrap_or(usize::MAX)).copied().unwrap_or(background)
}

/// B, S, G.
const CASES: &[Case] = &[
    case("no_sample", &[2, 0, 3]),
    case("no_truth", &[2, 5, 0]),
    case("one", &[1, 1, 1]),
    case("tail", &[3, 37, 5]),
    case("recipe", &[8, 512, 96]), // several blocks
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, s, g] = c.dims.try_into().unwrap();
        let (gt, idx) = (integers(1, b * s, -1, g as i32 + 1), integers(2, b * s, -1, 3));
        let classes = integers(3, b * g, -1, 79);
        let out = everywhere(|dev| {
            let (gt, idx) = (tensor(dev, &[b, s], &gt), tensor(dev, &[b, s], &idx));
            Ok(vec![labels(&gt, &idx, &tensor(dev, &[b, g], &classes), 80)?])
        });
        let want = (0..b * s).map(|i| naive(gt[i], idx[i], &classes[i / s * g..][..g], 80));
        assert_eq!(out[0].i32s(), want.collect::<Vec<_>>(), "{}", c.name);
    }
}
