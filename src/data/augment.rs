//! Random colour changes, combined into one affine map of RGB per picture.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::philox::Rng;

/// Strength of the random changes. Each factor is drawn from 1 ± the value, and hue from ± the value in turns. All zero
/// turns them off.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColourJitter {
    /// Multiplies all channels by a factor.
    pub brightness: f32,
    /// Multiplies the distance from the picture's mean grey by a factor.
    pub contrast: f32,
    /// Multiplies the distance from the pixel's own grey by a factor.
    pub saturation: f32,
    /// Rotates the colours about the grey axis (in YIQ).
    pub hue: f32,
}

impl ColourJitter {
    /// Whether no colour changes.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// Fails for numbers outside their range.
    pub fn check(&self) -> Result<()> {
        let all = [self.brightness, self.contrast, self.saturation];
        if all.iter().any(|v| !(0.0..=1.0).contains(v)) || !(0.0..=0.5).contains(&self.hue) {
            let got = format!("{all:?} and {}", self.hue);
            return Err(Error::value(
                "pipeline: colour_jitter",
                format!("want brightness, contrast and saturation of 0 to 1 and hue of 0 to 0.5, got {got}"),
            ));
        }
        Ok(())
    }
}

/// Weights of ITU-R BT.601 luma.
const GREY: [f32; 3] = [0.299, 0.587, 0.114];

/// `v -> m v + offset`, applied to each pixel.
#[derive(Clone, Copy, Debug)]
pub struct Colour {
    m: [[f32; 3]; 3],
    offset: f32,
}

impl Colour {
    /// Draws a change at random. `rows` are the rows of the picture, for its mean grey.
    pub fn draw<'a>(jitter: &ColourJitter, rng: &mut Rng, rows: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut factor = |v: f32| rng.range(1.0 - v, 1.0 + v);
        let (brightness, contrast, saturation) =
            (factor(jitter.brightness), factor(jitter.contrast), factor(jitter.saturation));
        let turn = rng.range(-jitter.hue, jitter.hue) * std::f32::consts::TAU;
        let mut m = hue(turn);
        for row in &mut m {
            for (v, g) in row.iter_mut().zip(GREY) {
                *v = *v * saturation + g * (1.0 - saturation);
            }
        }
        let gain = brightness * contrast;
        m.iter_mut().flatten().for_each(|v| *v *= gain);
        let offset = if jitter.contrast == 0.0 { 0.0 } else { mean_grey(rows) * brightness * (1.0 - contrast) };
        Self { m, offset }
    }

    /// Changes pixels in place.
    pub fn apply(&self, rgb: &mut [u8]) {
        for p in rgb.chunks_exact_mut(3) {
            let v = [f32::from(p[0]), f32::from(p[1]), f32::from(p[2])];
            for (o, m) in p.iter_mut().zip(&self.m) {
                *o = (m[0] * v[0] + m[1] * v[1] + m[2] * v[2] + self.offset + 0.5).clamp(0.0, 255.0) as u8;
            }
        }
    }
}

fn mean_grey<'a>(rows: impl Iterator<Item = &'a [u8]>) -> f32 {
    let (mut sum, mut n) = ([0u64; 3], 0u64);
    for row in rows {
        for p in row.chunks_exact(3) {
            for c in 0..3 {
                sum[c] += u64::from(p[c]);
            }
        }
        n += row.len() as u64 / 3;
    }
    let n = n.max(1) as f64;
    sum.iter().zip(GREY).map(|(s, g)| (*s as f64 / n) as f32 * g).sum()
}

/// The matrix that rotates by `turn` radians about the grey axis: RGB to YIQ, rotate I and Q, and back.
fn hue(turn: f32) -> [[f32; 3]; 3] {
    const TO: [[f32; 3]; 3] = [GREY, [0.595_716, -0.274_453, -0.321_263], [0.211_456, -0.522_591, 0.311_135]];
    const FROM: [[f32; 3]; 3] =
        [[1.0, 0.956_296, 0.621_024], [1.0, -0.272_122, -0.647_381], [1.0, -1.106_989, 1.704_615]];
    if turn == 0.0 {
        return [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    }
    let (s, c) = turn.sin_cos();
    let mut turned = TO;
    for k in 0..3 {
        turned[1][k] = c * TO[1][k] - s * TO[2][k];
        turned[2][k] = s * TO[1][k] + c * TO[2][k];
    }
    let mut m = [[0.0; 3]; 3];
    for i in 0..3 {
        for j in 0..3 {
            m[i][j] = (0..3).map(|k| FROM[i][k] * turned[k][j]).sum();
        }
    }
    m
}
