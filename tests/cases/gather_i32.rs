//! Numbers by index, against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::gather_i32::gather_i32;

/// The number of an image that one index names.
fn naive(x: &[i32], idx: i32, missing: i32) -> i32 {
    usize::try_from(idx).ok().and_then(|i| x.get(i).copied()).unwrap_or(missing)
}

/// B, N, S.
const CASES: &[Case] = &[
    case("no_image", &[0, 3, 2]),
    case("nothing_there", &[2, 0, 3]),
    case("nothing_asked", &[2, 3, 0]),
    case("one", &[1, 1, 1]),
    case("tail", &[3, 11, 37]),
    case("recipe", &[8, 2000, 100]), // several blocks
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, n, s] = c.dims.try_into().unwrap();
        let (x, idx) = (integers(1, b * n, -9, 99), integers(2, b * s, -2, n as i32 + 1));
        let out = everywhere(|dev| Ok(vec![gather_i32(&tensor(dev, &[b, n], &x), &tensor(dev, &[b, s], &idx), -7)?]));
        let want = (0..b * s).map(|r| naive(&x[r / s * n..][..n], idx[r], -7));
        assert_eq!(out[0].i32s(), want.collect::<Vec<_>>(), "{}", c.name);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let x = tensor(&dev, &[1, 2], &[1, 2]);
    let e = gather_i32(&x, &tensor(&dev, &[2, 1], &[0; 2]), -1).unwrap_err().to_string();
    assert!(e.starts_with("gather_i32: idx: want [1, 1]"), "{e}");
}
