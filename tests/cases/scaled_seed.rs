//! The gradient of a scaled loss, against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::scaled_seed::scaled_seed;

/// The scale is the first of the state's numbers.
fn naive(state: &[f32], weight: f32) -> f32 {
    weight * state[0]
}

/// The state's three numbers.
const CASES: &[Case] = &[case("state", &[3])];

#[test]
fn equals_the_definition() {
    for c in CASES {
        for (scale, weight) in [(1.0, 0.5), (65536.0, 1.0 / 3.0), (0.25, 1.0), (f32::INFINITY, 1.0)] {
            let state = [scale, 7.0, 9.0];
            let out = everywhere(|dev| Ok(vec![scaled_seed(&tensor(dev, c.dims, &state), weight)?]));
            assert_eq!(out[0].f32s(), [naive(&state, weight)]);
        }
    }
}
