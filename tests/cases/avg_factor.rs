//! The divisor of the losses, against its definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::avg_factor::{AvgFactor, avg_factor};

/// Positives and negatives of each image.
fn naive(counts: &[i32], kind: AvgFactor) -> f32 {
    let mut sum = 0i64;
    for image in counts.chunks(2) {
        let (positives, negatives) = (i64::from(image[0]), i64::from(image[1]));
        sum += match kind {
            AvgFactor::Rpn => positives.max(1) + negatives.max(1),
            AvgFactor::Roi => positives + negatives,
            AvgFactor::Dense => positives.max(1),
            AvgFactor::Positives => positives,
        };
    }
    sum.max(1) as f32
}

/// B.
const CASES: &[Case] = &[
    case("empty", &[0]),
    case("one", &[1]),
    case("tail", &[33]),   // more than a warp
    case("large", &[700]), // more images than threads of the block
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b] = c.dims.try_into().unwrap();
        for (kind, most) in [AvgFactor::Rpn, AvgFactor::Roi, AvgFactor::Dense, AvgFactor::Positives]
            .into_iter()
            .flat_map(|kind| [(kind, 1), (kind, 300)])
        {
            let counts = integers(1, 2 * b, 0, most);
            let out = everywhere(|dev| Ok(vec![avg_factor(&tensor(dev, &[b, 2], &counts), kind)?]));
            assert_eq!(out[0].f32s(), [naive(&counts, kind)], "{} {kind:?}", c.name);
        }
    }
}
