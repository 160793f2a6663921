//! How many rows of each image are there, against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::count_rows::count_rows;

/// The rows of one image whose index is not negative.
fn naive(idx: &[i32]) -> i32 {
    idx.iter().filter(|&&i| i >= 0).count() as i32
}

/// B, S.
const CASES: &[Case] = &[
    case("no_image", &[0, 4]),
    case("no_row", &[3, 0]),
    case("one", &[1, 1]),
    case("tail", &[3, 37]),
    case("long", &[2, 1000]), // more rows than threads of a block
    case("recipe", &[8, 512]),
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, s] = c.dims.try_into().unwrap();
        let idx = integers(1, b * s, -2, 3);
        let out = everywhere(|dev| Ok(vec![count_rows(&tensor(dev, &[b, s], &idx))?]));
        let want = (0..b).map(|i| naive(&idx[i * s..][..s]));
        assert_eq!(out[0].i32s(), want.collect::<Vec<_>>(), "{}", c.name);
    }
}
