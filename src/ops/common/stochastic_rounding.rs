//! f32 to bf16 by stochastic rounding, for optimizer state: the bits of kernels/common/stochastic_rounding.cuh. Not an op.
//!
//! A running mean whose decay is 0.999 moves by a thousandth of its distance a step, and bf16 has 8 bits: to the nearest it would mostly
//! round back to where it was. Rounded with the probability of what is cut off, it moves by the right amount on average.
//! Main type: [`Draws`].

use half::bf16;

use crate::device::gpu::dim_u32;
use crate::error::{Error, Result};
use crate::philox::{Purpose, Stream};
use crate::tensor::{DType, Tensor};

/// `v` in bf16: the neighbour farther from zero where the 16 bits that are cut off and `random` carry, so that the mean is `v`. What
/// bf16 holds stays as it is, what is finite stays finite, NaN stays NaN.
#[inline(always)]
pub(crate) fn round(v: f32, random: u16) -> bf16 {
    const INFINITY: u32 = 0x7F80_0000;
    let (bits, magnitude) = (v.to_bits(), v.to_bits() & 0x7FFF_FFFF);
    let carried = bits.wrapping_add(u32::from(random)) >> 16; // it wraps for NaN alone
    let overflows = magnitude < INFINITY && carried & 0x7FFF == INFINITY >> 16;
    let finite = carried - u32::from(overflows); // the largest of bf16, not infinity
    bf16::from_bits(if magnitude > INFINITY { 0x7FFF } else { finite as u16 })
}

/// `v` in bf16 to the nearest; what is finite stays finite.
pub(crate) fn round_to_nearest(v: f32) -> bf16 {
    let nearest = bf16::from_f32(v);
    if v.is_finite() && nearest.is_infinite() { bf16::MAX.copysign(nearest) } else { nearest }
}

/// Random numbers of one tensor: element i has word i % 4 of block i / 4 of its stream.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Draws(Stream);

/// Elements whose numbers are drawn at a time: they stay in the first cache.
pub(in crate::ops) const TILE: usize = 256;
/// Blocks whose rounds run side by side, in vectors: a step of AdamW on 8 million elements takes 9 ms, and 24 ms with one after the other.
const AT_ONCE: usize = 16;

impl Draws {
    /// Of the `tensor`-th of a step's list.
    pub(in crate::ops) fn new(key: &[i32], tensor: usize) -> Draws {
        Draws(Stream::of_key(key, tensor as u32, Purpose::StateRounding))
    }

    /// The numbers of elements `first`, a multiple of 4, and up.
    pub(in crate::ops) fn tile(self, first: usize) -> [u32; TILE] {
        let mut words = [0; TILE];
        for (i, some) in words.as_chunks_mut::<{ 4 * AT_ONCE }>().0.iter_mut().enumerate() {
            let blocks = self.0.blocks::<AT_ONCE>((first / 4 + i * AT_ONCE) as u32);
            some.copy_from_slice(blocks.as_flattened());
        }
        words
    }
}

/// What the state of an op's list is stored in, that of its first tensor: f32, or bf16 with the key of the step. The caller checks
/// that all have it.
///
/// Errors: `Dtype`; `Value` if bf16 has no key; `Shape` for a key of another size, or a tensor with more than 2^34 elements.
pub(in crate::ops) fn state_dtype(
    op: &str,
    first: Option<&Tensor>,
    largest: usize,
    key: Option<&Tensor>,
) -> Result<DType> {
    let dtype = first.map_or(DType::F32, Tensor::dtype);
    if let Some(key) = key {
        key.expect_shape(&format!("{op}: key"), &[6])?;
        key.expect_dtype(&format!("{op}: key"), DType::I32)?;
    }
    match (dtype, key) {
        (DType::F32, _) => Ok(dtype),
        (DType::BF16, Some(_)) => dim_u32(op, largest / 4).map(|_| dtype),
        (DType::BF16, None) => Err(Error::value(op, "state in bf16 is rounded by the key of the step: there is none")),
        (other, _) => {
            Err(Error::Dtype { what: format!("{op}: state"), want: "f32 or bf16".into(), got: other.name().into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bf16_holds_stays() {
        for bits in 0..=u16::MAX {
            let v = bf16::from_bits(bits);
            for random in [0, 1, 0x8000, u16::MAX] {
                let got = round(v.to_f32(), random);
                assert!(got.to_bits() == bits || (v.is_nan() && got.is_nan()), "{bits:x} {random}: {got:?}");
            }
            let nearest = round_to_nearest(v.to_f32());
            assert!(nearest.to_bits() == bits || (v.is_nan() && nearest.is_nan()));
        }
    }

    /// Of all 2^16 random numbers exactly as many round away from zero as the cut-off bits say: the mean is v.
    #[test]
    fn the_mean_is_exact() {
        for v in [1.0 + 3.0 * f32::EPSILON, -0.1, 1.0e-42, f32::MIN_POSITIVE * 1.7, -3.0e38, 65_535.9, 1.999_999_9] {
            let (mut sum, mut seen) = (0.0, std::collections::BTreeSet::new());
            for random in 0..=u16::MAX {
                let got = round(v, random);
                seen.insert(got.to_bits());
                sum += got.to_f64();
            }
            assert_eq!(sum / 65_536.0, f64::from(v));
            assert_eq!(seen.len(), 2, "{v}");
            assert!(seen.first().zip(seen.last()).is_some_and(|(a, b)| b - a == 1), "{v}: its two neighbours");
        }
    }

    #[test]
    fn edges() {
        for random in [0, 1, 0x7FFF, u16::MAX] {
            for v in [f32::MAX, f32::from_bits(0x7F7F_0001)] {
                assert_eq!(round(v, random), bf16::MAX);
                assert_eq!(round(-v, random), bf16::MIN);
            }
            assert_eq!(round(f32::INFINITY, random), bf16::INFINITY);
            assert_eq!(round(f32::NEG_INFINITY, random), bf16::NEG_INFINITY);
            // Payloads that lie in the bits that are cut off, or carry into the sign.
            for nan in [0x7F80_0001, 0xFF80_0001, 0x7FFF_FFFF, u32::MAX] {
                assert!(round(f32::from_bits(nan), random).is_nan());
            }
            assert_eq!(round(-0.0, random).to_bits(), 0x8000);
        }
        assert_eq!((round_to_nearest(f32::MAX), round_to_nearest(f32::MIN)), (bf16::MAX, bf16::MIN));
        assert!(round_to_nearest(f32::INFINITY).is_infinite() && round_to_nearest(f32::NAN).is_nan());
    }

    #[test]
    fn tiles_are_parts_of_one_sequence() {
        let key = crate::philox::key(7, 1, 3, 0);
        let (all, later) = (Draws::new(&key, 2).tile(0), Draws::new(&key, 2).tile(100));
        assert_eq!(all[100..], later[..TILE - 100]);
        assert_ne!(all[..8], Draws::new(&key, 3).tile(0)[..8]);
    }

    /// Error of a running mean of `f(gradient)` that is stored in bf16, beside one in f32, after 5000 steps with gaussian gradients: rms
    /// and mean, in parts of the rms of the one in f32; rounded stochastically, then to the nearest.
    fn errors(decay: f32, f: impl Fn(f32) -> f32) -> [[f64; 2]; 2] {
        const N: usize = 4096;
        let (mut exact, mut stored) = (vec![0.0f32; N], vec![[bf16::ZERO; 2]; N]);
        for step in 1..=5000 {
            let mut gradients = Stream::new(1, 0, step, 0, Purpose::Test).rng();
            let draws = Draws::new(&crate::philox::key(1, 0, step, 0), 0);
            for first in (0..N).step_by(TILE) {
                for (i, word) in (first..).zip(draws.tile(first)) {
                    let radius = (-2.0 * (1.0 - gradients.uniform()).ln()).sqrt();
                    let g = f(radius * (std::f32::consts::TAU * gradients.uniform()).cos());
                    let next = |v: f32| decay * v + (1.0 - decay) * g;
                    exact[i] = next(exact[i]);
                    let [stochastic, nearest] = stored[i].map(|v| next(v.to_f32()));
                    stored[i] = [round(stochastic, (word >> 16) as u16), round_to_nearest(nearest)];
                }
            }
        }
        let rms = (exact.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / N as f64).sqrt();
        std::array::from_fn(|k| {
            let off = || exact.iter().zip(&stored).map(|(&want, got)| got[k].to_f64() - f64::from(want));
            [(off().map(|d| d * d).sum::<f64>() / N as f64).sqrt() / rms, off().sum::<f64>() / N as f64 / rms]
        })
    }

    /// The table of docs/numerics.md, in per cent: each within a fifth of its rms.
    #[test]
    fn running_means_in_bf16() {
        let long = [[4.2, 0.1], [58.6, 58.3]];
        let short = [[0.54, 0.0], [0.38, 0.0]];
        for (what, got, want) in [("0.999", errors(0.999, |g| g * g), long), ("0.9", errors(0.9, |g| g), short)] {
            let got = got.map(|each| each.map(|v| 100.0 * v));
            println!("decay {what}: rms and mean error, stochastic {:.2?}, to the nearest {:.2?}", got[0], got[1]);
            for (got, want) in got.iter().zip(want) {
                let near = got.iter().zip(want).all(|(got, number)| (got - number).abs() < want[0] / 5.0);
                assert!(near, "decay {what}: {got:?}, want {want:?}");
            }
        }
    }
}
