//! Numbers by index, against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::gather_i32::gather_i32;

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
        let number = |r: usize| match usize::try_from(idx[r]) {
            Ok(i) if i < n => x[r / s * n + i],
            _ => -7,
        };
        assert_eq!(out[0].i32s(), (0..b * s).map(number).collect::<Vec<_>>(), "{}", c.name);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let x = tensor(&dev, &[1, 2], &[1, 2]);
    let e = gather_i32(&x, &tensor(&dev, &[2, 1], &[0; 2]), -1).unwrap_err().to_string();
    assert!(e.starts_with("gather_i32: idx: want [1, 1]"), "{e}");
}
