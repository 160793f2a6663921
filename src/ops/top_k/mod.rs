//! The best of each segment.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "top_k", gradient: Gradient::No("indices have no gradient") };

/// Positions of the `k` largest scores of each segment `(start, len, k)`, descending; of equal scores the first; NaN
/// last; -1 behind the end of a segment shorter than `k`.
///
/// Shapes: scores `[B,N]` f32; result `[B, sum of k]` i32, positions in N.
/// Saves: nothing.
/// Gradient: none.
/// Cost: a pass over the scores, a selection and a sort of k for each segment; workspace 8 bytes for each of 2·k + 1024
/// scores of a segment (on a GPU 8 bytes a score of segments above 4096).
/// Errors: `Value` if a segment leaves the row.
/// Reference: torch.topk, with ties broken by position.
pub fn top_k(scores: &Tensor, segments: &[(usize, usize, usize)]) -> Result<Tensor> {
    let device = scores.device();
    let _op = device.enter("top_k");
    let [b, n] = scores.dims("top_k: scores")?;
    scores.expect_dtype("top_k: scores", DType::F32)?;
    if let Some((start, len, _)) = segments.iter().find(|(start, len, _)| start + len > n) {
        return Err(Error::value("top_k", format!("segment {start}..{} leaves a row of {n}", start + len)));
    }
    let k: usize = segments.iter().map(|s| s.2).sum();
    let mut idx = Tensor::empty(device, &[b, k], DType::I32)?;
    let mut ws = match device.runs_kernels() {
        true => cuda::workspace(device, b, segments)?,
        false => {
            let keys = segments.iter().map(|&(_, len, k)| cpu::space(len, k)).sum();
            vec![Tensor::empty(device, &[b, keys, 2], DType::I32)?]
        }
    };
    on_device!(
        device,
        cpu => cpu::forward(idx.i32s_mut(), ws[0].i32s_mut(), scores.f32s(), n, segments),
        cuda => cuda::forward(&mut idx, &mut ws, scores, segments),
    );
    Ok(idx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::philox::{Purpose, Stream};

    /// On the CPU, and the same on the simulated device.
    fn run(scores: &[f32], b: usize, segments: &[(usize, usize, usize)]) -> Vec<i32> {
        let on = |dev: &Device| {
            let t = Tensor::from_slice(dev, &[b, scores.len() / b], scores).unwrap();
            top_k(&t, segments).unwrap().to_vec().unwrap()
        };
        let got = on(&Device::cpu());
        #[cfg(feature = "sim")]
        assert_eq!(on(&Device::sim(1)), got, "the simulated device");
        got
    }

    #[test]
    fn ties_go_to_the_first_and_nan_to_the_end() {
        assert_eq!(run(&[1.0, 3.0, f32::NAN, 3.0, -0.0, 0.0], 1, &[(0, 6, 6)]), [1, 3, 0, 4, 5, 2]);
        assert_eq!(run(&[f32::NEG_INFINITY, f32::NAN, f32::INFINITY], 1, &[(0, 3, 2)]), [2, 0]);
    }

    #[test]
    fn segments_are_separate_and_padded() {
        let got = run(&[5.0, 1.0, 2.0, 9.0, 0.0, 7.0], 2, &[(0, 2, 1), (2, 1, 3)]);
        assert_eq!(got, [0, 2, -1, -1, 0, 2, -1, -1]);
        assert_eq!(run(&[1.0, 2.0], 1, &[(0, 0, 2), (0, 2, 0)]), [-1, -1]);
        assert!(top_k(&Tensor::zeros(&Device::cpu(), &[1, 3], DType::F32).unwrap(), &[(2, 2, 1)]).is_err());
    }

    #[test]
    fn equals_a_stable_sort() {
        let mut r = Stream::new(1, 0, 0, 0, Purpose::Test).rng();
        let scores: Vec<f32> = (0..5000).map(|_| (r.below(700) as f32 - 300.0) / 7.0).collect();
        let mut want: Vec<i32> = (100..4900).collect();
        want.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
        want.truncate(1000);
        assert_eq!(run(&scores, 1, &[(100, 4800, 1000)]), want);
    }
}
