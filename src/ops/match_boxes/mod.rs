//! Which ground truth each box stands for.

mod cpu;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "match_boxes", gradient: Gradient::No("assignments are constants of the losses") };

/// Assigned to boxes that take no part.
pub const INVALID: i32 = -2;
/// Assigned to boxes that are neither positive nor negative.
pub const IGNORED: i32 = -1;

/// Thresholds of mmdetection's MaxIoUAssigner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matcher {
    /// Positive from this IoU on.
    pub pos_iou: f32,
    /// Negative below this IoU.
    pub neg_iou: f32,
    /// Least IoU of a low-quality match.
    pub min_pos_iou: f32,
    /// Each ground truth also takes the boxes that have their largest IoU with it; later ones override earlier ones.
    pub low_quality: bool,
}

/// The assignment of each box: `g + 1` for ground truth `g`, 0 for negatives, -1 for what is between the thresholds, -2
/// for what is not valid. IoU without "+1", the union at least 1e-6; of equal IoUs the first ground truth counts; without
/// ground truth all is negative. NaN boxes are negative.
///
/// Shapes: boxes `[N,4]` (shared by the images) or `[B,N,4]`, valid `[B,N]` u8 or i32 (above 0 = valid), gt_boxes
/// `[B,G,4]` f32, gt_count `[B]` i32; result `[B,N]` i32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: two passes of B·N·G IoUs with `low_quality`, else one; never an IoU matrix in memory.
/// Errors: `Shape`, `Dtype`.
/// Reference: mmdetection's MaxIoUAssigner (Ren et al. 2015, section 3.1.2).
pub fn match_boxes(
    boxes: &Tensor,
    valid: Option<&Tensor>,
    gt_boxes: &Tensor,
    gt_count: &Tensor,
    matcher: Matcher,
) -> Result<Tensor> {
    let device = gt_boxes.device();
    let _op = device.enter("match_boxes");
    let [b, g, _] = gt_boxes.dims("match_boxes: gt_boxes")?;
    gt_boxes.expect_shape("match_boxes: gt_boxes", &[b, g, 4])?;
    gt_boxes.expect_dtype("match_boxes: gt_boxes", DType::F32)?;
    gt_count.expect_shape("match_boxes: gt_count", &[b])?;
    gt_count.expect_dtype("match_boxes: gt_count", DType::I32)?;
    boxes.expect_dtype("match_boxes: boxes", DType::F32)?;
    let n = match *boxes.shape() {
        [n, 4] => n,
        [bb, n, 4] if bb == b => n,
        _ => {
            return Err(Error::Shape {
                what: "match_boxes: boxes".into(),
                want: format!("[N,4] or [{b},N,4]"),
                got: boxes.shape().to_vec(),
            });
        }
    };
    if let Some(v) = valid {
        v.expect_shape("match_boxes: valid", &[b, n])?;
        if v.dtype() != DType::U8 {
            v.expect_dtype("match_boxes: valid", DType::I32)?;
        }
    }
    let mut assigned = Tensor::empty(device, &[b, n], DType::I32)?;
    let mut best = Tensor::empty(device, &[b, cpu::tasks(n), g], DType::F32)?;
    on_device!(device, cpu => {
        let shared = boxes.shape().len() == 2;
        let problem = cpu::Problem { boxes: boxes.f32s(), shared, gt: gt_boxes.f32s(), count: gt_count.i32s(), n, g, matcher };
        cpu::forward(assigned.i32s_mut(), best.f32s_mut(), valid, &problem);
    });
    Ok(assigned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::tensor::philox::{Purpose, Stream};

    /// IoU matrix in f64 on f32 overlaps: the definition, whole matrix in memory.
    fn naive(boxes: &[f32], gt: &[f32], m: Matcher) -> Vec<i32> {
        let iou = |a: &[f32], b: &[f32]| -> f32 {
            let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
            let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
            let union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h;
            w * h / union.max(1e-6)
        };
        let matrix: Vec<Vec<f32>> = gt.chunks(4).map(|g| boxes.chunks(4).map(|b| iou(g, b)).collect()).collect();
        (0..boxes.len() / 4)
            .map(|i| {
                let column: Vec<f32> = matrix.iter().map(|row| row[i]).collect();
                let max = column.iter().copied().fold(0.0, f32::max);
                let mut a = if max < m.neg_iou { 0 } else { -1 };
                if max >= m.pos_iou {
                    a = column.iter().position(|&v| v == max).unwrap() as i32 + 1;
                }
                if m.low_quality {
                    for (g, row) in matrix.iter().enumerate() {
                        let best = row.iter().copied().fold(0.0, f32::max);
                        if best >= m.min_pos_iou && row[i] == best {
                            a = g as i32 + 1;
                        }
                    }
                }
                a
            })
            .collect()
    }

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut r = Stream::new(seed, 0, 0, 0, Purpose::Test).rng();
        (0..n)
            .flat_map(|_| {
                let (x, y) = (r.range(0.0, 40.0).floor(), r.range(0.0, 40.0).floor());
                [x, y, x + r.range(0.0, 20.0).floor(), y + r.range(1.0, 20.0).floor()]
            })
            .collect()
    }

    #[test]
    fn as_the_definition_says() {
        let dev = Device::cpu();
        let matchers = [
            Matcher { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.3, low_quality: true },
            Matcher { pos_iou: 0.5, neg_iou: 0.5, min_pos_iou: 0.5, low_quality: false },
            Matcher { pos_iou: 0.5, neg_iou: 0.4, min_pos_iou: 0.0, low_quality: true },
        ];
        for (case, (n, g)) in [(0, 3), (1, 1), (37, 5), (5000, 9), (2049, 0)].into_iter().enumerate() {
            let (boxes, gt) = (random(n, case as u64), random(g, 100 + case as u64));
            for m in matchers {
                let t = Tensor::from_slice(&dev, &[n, 4], &boxes).unwrap();
                let mut two = gt.clone();
                two.extend(&gt); // second image: no ground truth counted
                let gt_t = Tensor::from_slice(&dev, &[2, g, 4], &two).unwrap();
                let count = Tensor::from_slice(&dev, &[2], &[g as i32, 0]).unwrap();
                let got = match_boxes(&t, None, &gt_t, &count, m).unwrap();
                assert_eq!(got.i32s()[..n], naive(&boxes, &gt, m), "{n} {g} {m:?}");
                assert!(got.i32s()[n..].iter().all(|&a| a == 0));
            }
        }
    }

    #[test]
    fn invalid_and_nan_boxes_do_not_count() {
        let dev = Device::cpu();
        let m = Matcher { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.3, low_quality: true };
        let boxes = [0., 0., 9., 10., 0., 0., 8., 10., f32::NAN, 0., 1., 1.];
        let t = Tensor::from_slice(&dev, &[3, 4], &boxes).unwrap();
        let gt = Tensor::from_slice(&dev, &[1, 1, 4], &[0.0f32, 0., 10., 10.]).unwrap();
        let count = Tensor::from_slice(&dev, &[1], &[1i32]).unwrap();
        let valid = Tensor::from_slice(&dev, &[1, 3], &[-1i32, 1, 1]).unwrap();
        let got = match_boxes(&t, Some(&valid), &gt, &count, m).unwrap();
        assert_eq!(got.i32s(), [INVALID, 1, 0]);
        let valid = Tensor::from_slice(&dev, &[1, 3], &[1u8, 0, 1]).unwrap();
        assert_eq!(match_boxes(&t, Some(&valid), &gt, &count, m).unwrap().i32s(), [1, INVALID, 0]);
    }
}
