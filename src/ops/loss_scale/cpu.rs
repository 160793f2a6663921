//! CPU kernel of the loss scale.

use super::LossScaleRule;
use crate::ops::common::bias_correction::bias_correction;

/// Returns the bias correction of the next step (the number of applied steps plus 1).
pub(super) fn correction(betas: [f64; 2], state: &[f32]) -> [f32; 2] {
    bias_correction(betas, state[2] as u64 + 1)
}

/// Returns the factor by which the optimizer multiplies gradients.
pub(super) fn step(norm: &mut f32, state: &mut [f32], max_norm: f32, rule: &LossScaleRule) -> f32 {
    let scale = state[0];
    if !norm.is_finite() {
        state[0] = (scale * rule.backoff).max(rule.min);
        state[1] = 0.0;
        return f32::NAN;
    }
    *norm = (*norm / scale).min(f32::MAX);
    state[1] += 1.0;
    state[2] += 1.0;
    if state[1] >= rule.interval as f32 {
        state[0] = (scale * rule.growth).min(rule.max);
        state[1] = 0.0;
    }
    (max_norm / (*norm + 1e-6)).min(1.0) / scale
}
