//! The bias correction of AdamW's running means.

/// `1 - beta^step` for both betas: what makes the running means unbiased after `step` updates (from 1).
pub fn bias_correction(betas: [f64; 2], step: u64) -> [f32; 2] {
    betas.map(|beta| (1.0 - beta.powf(step as f64)) as f32)
}
