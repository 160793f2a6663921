//! The factor that clips gradients, against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::clip_scale::clip_scale;

/// torch's clip_grad_norm_; NaN for a norm that is not finite, so that the optimizer skips the step.
fn naive(norm: f32, max_norm: f32) -> f64 {
    if !norm.is_finite() {
        return f64::NAN;
    }
    (f64::from(max_norm) / (f64::from(norm) + 1e-6)).min(1.0)
}

/// One number.
const CASES: &[Case] = &[case("one", &[1])];

#[test]
fn equals_the_definition() {
    for c in CASES {
        for (norm, max_norm) in [0.0, 1e-30, 0.5, 3.0, 3.5, 1e30, f32::INFINITY, f32::NAN]
            .into_iter()
            .flat_map(|norm| [(norm, 3.0), (norm, 35.0), (norm, f32::INFINITY)])
        {
            let out = everywhere(|dev| Ok(vec![clip_scale(&tensor(dev, c.dims, &[norm]), max_norm)?]));
            let (got, want) = (out[0].f32s()[0], naive(norm, max_norm));
            let near = (f64::from(got) - want).abs() <= 1e-6 * want.abs();
            assert!(near || (got.is_nan() && want.is_nan()), "{norm} {max_norm}: {got}, want {want}");
        }
    }
}
