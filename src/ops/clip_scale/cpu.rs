//! The factor on the CPU.

pub(super) fn forward(norm: f32, max_norm: f32) -> f32 {
    if norm.is_finite() { (max_norm / (norm + 1e-6)).min(1.0) } else { f32::NAN }
}
