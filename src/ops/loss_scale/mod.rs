//! Dynamic loss scaling: a factor that keeps 16-bit gradients inside their range. It reacts to overflows entirely on
//! the device.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "loss_scale", gradient: Gradient::No("it follows gradients after the backward pass") };

/// The usual initial scale: torch.amp.GradScaler's 2^16.
pub const INITIAL_SCALE: f32 = 65536.0;

/// How the scale moves. It is constant if `growth` and `backoff` are both 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaleRule {
    /// Factor applied after `interval` good steps in a row.
    pub growth: f32,
    /// Factor applied after an overflow.
    pub backoff: f32,
    /// Number of good steps in a row after which the scale grows.
    pub interval: u32,
    /// Lower bound of the scale after overflows.
    pub min: f32,
    /// Upper bound of the scale after growth.
    pub max: f32,
}

impl Default for LossScaleRule {
    /// torch.amp.GradScaler's factors and interval; min 1 and max 2^24.
    fn default() -> Self {
        LossScaleRule { growth: 2.0, backoff: 0.5, interval: 2000, min: 1.0, max: 16_777_216.0 }
    }
}

impl LossScaleRule {
    /// Errors: `Value` if `growth` is not finite or below 1, `backoff` not in (0, 1], `interval` not in 1 to 2^24, or
    /// not `0 < min <= max` with finite numbers.
    pub fn check(&self) -> Result<()> {
        check_scale("min", self.min)?;
        check_scale("max", self.max)?;
        let wrong = if !(1.0..=f32::MAX).contains(&self.growth) {
            format!("growth is {}: want 1 or more, usually 2", self.growth)
        } else if !(f32::MIN_POSITIVE..=1.0).contains(&self.backoff) {
            format!("backoff is {}: want more than 0 and at most 1, usually 0.5", self.backoff)
        } else if !(1..=1 << 24).contains(&self.interval) {
            format!("interval is {}: want 1 to 2^24, steps that f32 counts", self.interval)
        } else if self.min > self.max {
            format!("min {} is above max {}", self.min, self.max)
        } else {
            return Ok(());
        };
        Err(Error::value("loss_scale", wrong))
    }
}

/// A scale whose inverse is finite too.
fn check_scale(what: &str, scale: f32) -> Result<()> {
    if (f32::MIN_POSITIVE..=f32::MAX).contains(&scale) {
        return Ok(());
    }
    Err(Error::value("loss_scale", format!("{what} is {scale}: want a finite scale above 0, best a power of two")))
}

/// The state of a stage that begins, f32 `[3]`: the scale, good steps in a row since it last changed, and steps
/// applied. (f32 counts to 2^24; the corrections of [`loss_scale`] are 1 long before.)
///
/// With `initial` a power of two scaling rounds nothing: [`INITIAL_SCALE`].
///
/// Errors: `Value` if `initial` is not finite or not positive.
pub fn loss_scale_state(device: &Device, initial: f32) -> Result<Tensor> {
    check_scale("initial scale", initial)?;
    Tensor::from_slice(device, &[3], &[initial, 0.0, 0.0])
}

/// `norm /= scale; grad_scale = min(1, max_norm / (norm + 1e-6)) / scale`, which unscales and clips in the optimizer;
/// then the state (scale, good, applied) moves: `good += 1, applied += 1`, and when good reaches `interval`, `scale =
/// min(max, scale * growth), good = 0`. Of a norm that is not finite grad_scale is NaN, at which the optimizer skips
/// the step, the norm stays as it is, and `scale = max(min, scale * backoff), good = 0`. `correction = 1 -
/// beta^(applied + 1)`, with applied before the move: AdamW's, which does not count steps that were skipped.
///
/// While the scale is a power of two, a step of scaled gradients is that of
/// [`clip_scale`](super::clip_scale::clip_scale) on unscaled ones to the bit, as long as nothing leaves the range of its
/// type. A norm beyond f32 is an overflow, even of finite gradients. One that only division by a scale below 1 takes
/// there becomes f32's largest number: a smaller scale would not help.
///
/// Shapes: norm `[1]` (of the scaled gradients before, of the true ones after), state `[3]`, correction `[2]`,
/// grad_scale `[1]`; f32.
/// Saves: nothing.
/// Gradient: none: it comes after the backward pass.
/// Cost: some numbers, one launch; nothing is read by the host.
/// Errors: `Shape`, `Dtype`; `Value` for a rule that does not pass its check, a beta not in [0, 1), a max_norm not
/// above 0 (infinite: no limit).
/// Reference: Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2; torch.amp.GradScaler.
pub fn loss_scale(
    norm: &mut Tensor,
    state: &mut Tensor,
    correction: &mut Tensor,
    betas: [f64; 2],
    max_norm: f32,
    rule: &LossScaleRule,
) -> Result<Tensor> {
    let device = norm.device().clone();
    let _op = device.enter("loss_scale");
    for (what, t, n) in [
        ("loss_scale: norm", &*norm, 1),
        ("loss_scale: state", &*state, 3),
        ("loss_scale: correction", &*correction, 2),
    ] {
        t.expect_shape(what, &[n])?;
        t.expect_dtype(what, DType::F32)?;
    }
    rule.check()?;
    if !betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
        return Err(Error::value("loss_scale", format!("betas are {betas:?}: want 0 or more, and less than 1")));
    }
    if max_norm.is_nan() || max_norm <= 0.0 {
        return Err(Error::value("loss_scale", format!("max_norm is {max_norm}: want more than 0, or infinity")));
    }
    let mut grad_scale = Tensor::empty(&device, &[1], DType::F32)?;
    on_device!(
        &device,
        cpu => {
            correction.f32s_mut().copy_from_slice(&cpu::correction(betas, state.f32s()));
            grad_scale.f32s_mut()[0] = cpu::step(&mut norm.f32s_mut()[0], state.f32s_mut(), max_norm, rule);
        },
        cuda => cuda::step(&mut grad_scale, norm, state, correction, betas, max_norm, rule),
    );
    Ok(grad_scale)
}
