//! Draws training samples from the candidates: at most a given share of positives, the rest negatives.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::philox::Purpose;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "sample", gradient: Gradient::No("samples are constants of the losses") };

/// How many samples are drawn of each image, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Number of samples of an image.
    pub num: usize,
    /// Largest share of positives: at most `floor(num * pos_fraction)`, in f64 as in mmdetection (7 of 10 for 0.7).
    pub pos_fraction: f64,
    /// How candidates are chosen.
    pub mode: SampleMode,
}

/// How candidates are chosen if there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleMode {
    /// The candidates with the smallest Philox numbers: a uniform choice without replacement.
    Random(Purpose),
    /// `candidates[floor(k len / num)]`.
    Strided,
}

/// Samples of each image: positives in ascending order, then negatives in ascending order, then padding.
pub struct Sampled {
    /// Row of the candidate, i32 `[B,S]`; -1 for padding.
    pub idx: Tensor,
    /// Ground truth index of positives, i32 `[B,S]`; -1 otherwise.
    pub gt: Tensor,
    /// Numbers of positives and negatives, i32 `[B,2]`.
    pub counts: Tensor,
}

/// Draws samples from `assigned` (the result of `match_boxes`): up to `num * pos_fraction` positives, then negatives
/// until there are `num` samples.
///
/// Shapes: assigned `[B,N]` i32; key i32 `[6]` (seed low and high, stage, step low and high, first image); see
/// [`Sampled`].
/// Saves: nothing.
/// Gradient: none.
/// Cost: one pass, a Philox block for every four candidates, a selection; workspace 8 bytes a candidate, on a GPU 1/4
/// byte.
/// Errors: `Shape`, `Dtype`.
/// Reference: mmdetection's RandomSampler without an upper bound on negatives.
pub fn sample(assigned: &Tensor, sampler: &Sampler, key: &Tensor) -> Result<Sampled> {
    let device = assigned.device();
    let _op = device.enter("sample");
    let [b, n] = assigned.dims("sample: assigned")?;
    assigned.expect_dtype("sample: assigned", DType::I32)?;
    key.expect_shape("sample: key", &[6])?;
    key.expect_dtype("sample: key", DType::I32)?;
    let mut idx = Tensor::empty(device, &[b, sampler.num], DType::I32)?;
    let mut gt = Tensor::empty(device, &[b, sampler.num], DType::I32)?;
    let mut counts = Tensor::empty(device, &[b, 2], DType::I32)?;
    let ws = if device.runs_kernels() { cuda::workspace(b, n) } else { [b, n, 2] };
    let mut ws = Tensor::empty(device, &ws, DType::I32)?;
    on_device!(
        device,
        cpu => {
            let (out, ws) = ((idx.i32s_mut(), gt.i32s_mut(), counts.i32s_mut()), ws.i32s_mut());
            cpu::sample(out.0, out.1, out.2, ws, assigned.i32s(), n, sampler, key.i32s());
        },
        cuda => cuda::sample(&mut idx, &mut gt, &mut counts, &mut ws, assigned, sampler, key),
    );
    Ok(Sampled { idx, gt, counts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// On the CPU; the GPUs of this build must agree.
    fn run(assigned: &[i32], b: usize, s: Sampler, key: [i32; 6]) -> (Vec<i32>, Vec<i32>, Vec<i32>) {
        let on = |dev: Device| {
            let t = Tensor::from_slice(&dev, &[b, assigned.len() / b], assigned).unwrap();
            let key = Tensor::from_slice(&dev, &[6], &key).unwrap();
            let s = sample(&t, &s, &key).unwrap();
            let ints = |t: &Tensor| t.to_vec::<i32>().unwrap();
            (ints(&s.idx), ints(&s.gt), ints(&s.counts))
        };
        let out = on(Device::cpu());
        #[cfg(feature = "sim")]
        assert!(on(Device::sim(1)) == out, "{s:?}: the simulated device draws others");
        out
    }

    const STRIDED: Sampler = Sampler { num: 4, pos_fraction: 0.5, mode: SampleMode::Strided };

    #[test]
    fn positives_first_then_negatives_then_padding() {
        let (idx, gt, counts) = run(&[0, -1, 3, -2, 0], 1, STRIDED, [0; 6]);
        assert_eq!((idx, gt, counts), (vec![2, 0, 4, -1], vec![2, -1, -1, -1], vec![1, 2]));
    }

    #[test]
    fn strided_choice_is_that_of_the_fixtures() {
        // Five positives for two places: floor(0 * 5 / 2) = 0, floor(1 * 5 / 2) = 2.
        let (idx, gt, _) = run(&[1, 1, 2, 1, 5, 0, 0, 0], 1, STRIDED, [0; 6]);
        assert_eq!((idx, gt), (vec![0, 2, 5, 6], vec![0, 1, -1, -1]));
    }

    #[test]
    fn random_choice_is_uniform_and_keyed() {
        let assigned = vec![0; 1000];
        let s = Sampler { num: 100, pos_fraction: 0.25, mode: SampleMode::Random(Purpose::SampleRpn) };
        let mut hits = vec![0; 1000];
        for step in 0..400 {
            let (idx, _, counts) = run(&assigned, 1, s, [7, 0, 0, step, 0, 0]);
            assert!(idx.windows(2).all(|w| w[0] < w[1]), "ascending, no repeats");
            assert_eq!(counts, [0, 100]);
            idx.iter().for_each(|&i| hits[i as usize] += 1);
        }
        // 400 draws of 1/10: mean 40, deviation 6.
        assert!(hits.iter().all(|&h| (10..=75).contains(&h)), "{:?}", hits.iter().minmax());
        let one = run(&assigned, 1, s, [7, 0, 0, 1, 0, 0]);
        assert_ne!(one, run(&assigned, 1, s, [8, 0, 0, 1, 0, 0]));
        // The second image of a batch draws what the first of a batch that starts there draws.
        let two = run(&vec![0; 2000], 2, s, [7, 0, 0, 1, 0, 4]);
        assert_eq!(two.0[100..], run(&assigned, 1, s, [7, 0, 0, 1, 0, 5]).0);
    }

    trait MinMax {
        fn minmax(self) -> Option<(i32, i32)>;
    }
    impl<'a, I: Iterator<Item = &'a i32> + Clone> MinMax for I {
        fn minmax(self) -> Option<(i32, i32)> {
            Some((*self.clone().min()?, *self.max()?))
        }
    }

    #[test]
    fn quotas_are_mmdetections() {
        // int(num * fraction) in Python: in f32 the first two would be one less.
        for (num, pos_fraction, want) in [(10, 0.7, 7), (100, 0.07, 7), (10, 0.3, 3), (3, 0.5, 1), (512, 0.25, 128)] {
            let (_, _, counts) = run(&vec![1; 600], 1, Sampler { num, pos_fraction, ..STRIDED }, [0; 6]);
            assert_eq!(counts, [want, 0], "{num} * {pos_fraction}");
        }
    }

    #[test]
    fn empty_inputs() {
        assert_eq!(run(&[], 1, STRIDED, [0; 6]), (vec![-1; 4], vec![-1; 4], vec![0, 0]));
    }
}
