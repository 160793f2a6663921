use super::*;
use crate::device::Device;
use crate::ops::anchors_valid::{AnchorGrid, AnchorLevel, anchors_valid};
use crate::ops::common::testing::OpFixture;
use crate::philox::{Purpose, Stream};

/// Seven boxes and two ground truths by hand, with the RPN's thresholds: positive from 0.7, negative below 0.3.
///
/// All are 4 high (y from 0 to 4), except boxes 0 and 1, which are 3 and 2 high.
///
/// ```text
///   x  0   1   2   3   4   5   6   7   8   9   10  11  12
///  G0  [===============]                                      area 16
///  G1                          [===============]              area 16
///
///   0  [===============]                                      IoU with G0: 12 / 16 = 0.75          -> positive, 1
///   1  [===============]                                      IoU with G0:  8 / 16 = 0.50          -> ignored, -1
///   2              [=======]                                  IoU with G0:  4 / (16 + 8 - 4) = 0.2 -> negative, 0
///   3                              [===============]          IoU with G1: 12 / 20 = 0.60          -> ignored, -1
///   4                                  [===============]      IoU with G1:  8 / 24 = 0.33          -> ignored, -1
///   5                      [===============]                  IoU with G1: 12 / 20 = 0.60          -> ignored, -1
///   6  [===============]                                      not valid: takes no part             -> -2
/// ```
///
/// No box reaches 0.7 with G1. With `low_quality` G1 takes its best boxes, 3 and 5, which are equally good: both become
/// 2. G0's best is box 0 (0.75 ≥ 0.3, positive anyway): box 6 would have an IoU of 1 with it, but does not count.
#[test]
fn an_example_by_hand() {
    let boxes = [
        [0.0f32, 0.0, 4.0, 3.0],
        [0.0, 0.0, 4.0, 2.0],
        [3.0, 0.0, 5.0, 4.0],
        [7.0, 0.0, 11.0, 4.0],
        [8.0, 0.0, 12.0, 4.0],
        [5.0, 0.0, 9.0, 4.0],
        [0.0, 0.0, 4.0, 4.0],
    ];
    let truth = [[0.0f32, 0.0, 4.0, 4.0], [6.0, 0.0, 10.0, 4.0]];
    for dev in devices() {
        let boxes = Tensor::from_slice(&dev, &[7, 4], &boxes.concat()).unwrap();
        let truth = Tensor::from_slice(&dev, &[1, 2, 4], &truth.concat()).unwrap();
        let count = Tensor::from_slice(&dev, &[1], &[2i32]).unwrap();
        let valid = Tensor::from_slice(&dev, &[1, 7], &[1u8, 1, 1, 1, 1, 1, 0]).unwrap();
        let matched = |low_quality| {
            let m = Matcher { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.3, low_quality };
            ints(&match_boxes(&boxes, Some(&valid), &truth, &count, m).unwrap())
        };
        assert_eq!(matched(false), [1, IGNORED, 0, IGNORED, IGNORED, IGNORED, INVALID]);
        assert_eq!(matched(true), [1, IGNORED, 0, 2, IGNORED, 2, INVALID]);
    }
}

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

/// The CPU, and the GPUs of this build.
fn devices() -> Vec<Device> {
    vec![
        Device::cpu(),
        #[cfg(feature = "sim")]
        Device::sim(1),
    ]
}

fn ints(t: &Tensor) -> Vec<i32> {
    t.to_vec().unwrap()
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
    let matchers = [
        Matcher { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.3, low_quality: true },
        Matcher { pos_iou: 0.5, neg_iou: 0.5, min_pos_iou: 0.5, low_quality: false },
        Matcher { pos_iou: 0.5, neg_iou: 0.4, min_pos_iou: 0.0, low_quality: true },
    ];
    for (case, (n, g)) in [(0, 3), (1, 1), (37, 5), (5000, 9), (2049, 0)].into_iter().enumerate() {
        let (boxes, gt) = (random(n, case as u64), random(g, 100 + case as u64));
        for (m, dev) in matchers.iter().flat_map(|m| devices().into_iter().map(move |dev| (*m, dev))) {
            let t = Tensor::from_slice(&dev, &[n, 4], &boxes).unwrap();
            let mut two = gt.clone();
            two.extend(&gt); // second image: no ground truth counted
            let gt_t = Tensor::from_slice(&dev, &[2, g, 4], &two).unwrap();
            let count = Tensor::from_slice(&dev, &[2], &[g as i32, 0]).unwrap();
            let got = ints(&match_boxes(&t, None, &gt_t, &count, m).unwrap());
            assert_eq!(got[..n], naive(&boxes, &gt, m), "{dev:?} {n} {g} {m:?}");
            assert!(got[n..].iter().all(|&a| a == 0));
        }
    }
}

#[test]
fn invalid_and_nan_boxes_do_not_count() {
    let m = Matcher { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.3, low_quality: true };
    let boxes = [0., 0., 9., 10., 0., 0., 8., 10., f32::NAN, 0., 1., 1.];
    for dev in devices() {
        let t = Tensor::from_slice(&dev, &[3, 4], &boxes).unwrap();
        let gt = Tensor::from_slice(&dev, &[1, 1, 4], &[0.0f32, 0., 10., 10.]).unwrap();
        let count = Tensor::from_slice(&dev, &[1], &[1i32]).unwrap();
        let valid = Tensor::from_slice(&dev, &[1, 3], &[-1i32, 1, 1]).unwrap();
        assert_eq!(ints(&match_boxes(&t, Some(&valid), &gt, &count, m).unwrap()), [INVALID, 1, 0]);
        let valid = Tensor::from_slice(&dev, &[1, 3], &[1u8, 0, 1]).unwrap();
        assert_eq!(ints(&match_boxes(&t, Some(&valid), &gt, &count, m).unwrap()), [1, INVALID, 0]);
    }
}

#[test]
fn equals_mmdetection() {
    let f = OpFixture::open("assigner");
    // Unused slots hold a box that would match: the count must keep it out.
    let mut gt = f.f32("gt");
    gt.extend([0.0, 0.0, 100.0, 100.0]);
    for (name, pos_iou, neg_iou, min_pos_iou, low_quality) in [
        ("rpn", 0.7, 0.3, 0.3, true),
        ("rcnn", 0.5, 0.5, 0.5, false),
        ("rcnn_mask", 0.5, 0.5, 0.5, true),
        ("retina", 0.5, 0.4, 0.0, true), // a ground truth without overlap takes all boxes without overlap
        ("c2", 0.6, 0.6, 0.6, false),
    ] {
        let m = Matcher { pos_iou, neg_iou, min_pos_iou, low_quality };
        for (dev, count) in devices().into_iter().flat_map(|dev| [(dev.clone(), 6), (dev, 0)]) {
            let key = if count == 0 { format!("{name}_nogt.gt_inds") } else { format!("{name}.gt_inds") };
            let priors = Tensor::from_slice(&dev, &[120, 4], &f.f32("priors")).unwrap();
            let gt = Tensor::from_slice(&dev, &[1, 7, 4], &gt).unwrap();
            let count = Tensor::from_slice(&dev, &[1], &[count]).unwrap();
            assert_eq!(ints(&match_boxes(&priors, None, &gt, &count, m).unwrap()), f.i32(&key), "{dev:?} {key}");
        }
    }
}

/// The region proposal network's anchors for an input of 160×192 pixels: three of area `(8 stride)²` around each cell's
/// corner.
fn pyramid() -> (Vec<f32>, Vec<AnchorLevel>) {
    let level =
        |stride_px: usize| AnchorLevel { h: 160usize.div_ceil(stride_px), w: 192usize.div_ceil(stride_px), stride_px };
    let levels: Vec<AnchorLevel> = [4, 8, 16, 32, 64].map(level).to_vec();
    let mut boxes = Vec::new();
    for level in &levels {
        let stride = level.stride_px as f32;
        for (y, x) in (0..level.h).flat_map(|y| (0..level.w).map(move |x| (y as f32 * stride, x as f32 * stride))) {
            for ratio in [0.5f32, 1.0, 2.0] {
                let (w, h) = (stride * (1.0 / ratio.sqrt()) * 8.0, stride * ratio.sqrt() * 8.0);
                boxes.extend([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h]);
            }
        }
    }
    (boxes, levels)
}

#[test]
fn anchors_of_a_pyramid_for_any_number_of_threads() {
    let dev = Device::cpu();
    let (boxes, levels) = pyramid();
    let anchors = Tensor::from_slice(&dev, &[boxes.len() / 4, 4], &boxes).unwrap();
    let grid = AnchorGrid { boxes: &anchors, levels: &levels, per_cell: 3 };
    let sizes = [160.0, 192.0, 160.0, 192.0, 118.0, 150.0, 128.0, 160.0];
    let sizes = Tensor::from_slice(&dev, &[2, 4], &sizes).unwrap();
    let valid = anchors_valid(grid, &sizes, 0.0).unwrap().slice::<u8>().to_vec();
    let n = valid.len() / 2;
    let gt: Vec<f32> = [random(4, 7), random(4, 8)].concat().iter().map(|v| 2.5 * v).collect();
    let m = Matcher { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.1, low_quality: true };
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let dev = Device::cpu();
            let gt = Tensor::from_slice(&dev, &[2, 4, 4], &gt).unwrap();
            let count = Tensor::from_slice(&dev, &[2], &[4, 1]).unwrap();
            let valid = Tensor::from_slice(&dev, &[2, n], &valid).unwrap();
            let shared = Tensor::from_slice(&dev, &[n, 4], &boxes).unwrap();
            let each = Tensor::from_slice(&dev, &[2, n, 4], &boxes.repeat(2)).unwrap();
            let shared = match_boxes(&shared, Some(&valid), &gt, &count, m).unwrap();
            assert_eq!(shared.i32s(), match_boxes(&each, Some(&valid), &gt, &count, m).unwrap().i32s());
            shared.i32s().to_vec()
        })
    };
    let got = run(1);
    assert_eq!(got, run(3));
    for (image, count) in [4, 1].into_iter().enumerate() {
        // The definition knows no validity: it gets the valid boxes only.
        let at: Vec<usize> = (0..n).filter(|i| valid[image * n + i] > 0).collect();
        let part: Vec<f32> = at.iter().flat_map(|&i| boxes[4 * i..4 * i + 4].to_vec()).collect();
        let want = naive(&part, &gt[image * 16..][..count * 4], m);
        assert!(want.iter().any(|&a| a > 0), "image {image} has no match");
        let mut all = vec![INVALID; n];
        at.iter().zip(want).for_each(|(&i, a)| all[i] = a);
        assert_eq!(got[image * n..][..n], all);
    }
}

#[test]
fn empty_and_wrong_inputs() {
    let dev = Device::cpu();
    let m = Matcher { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.3, low_quality: true };
    let f = |shape: &[usize]| Tensor::zeros(&dev, shape, DType::F32).unwrap();
    let i = |shape: &[usize]| Tensor::zeros(&dev, shape, DType::I32).unwrap();
    assert_eq!(match_boxes(&f(&[3, 4]), None, &f(&[0, 2, 4]), &i(&[0]), m).unwrap().shape(), [0, 3]);
    assert_eq!(match_boxes(&f(&[0, 4]), None, &f(&[1, 2, 4]), &i(&[1]), m).unwrap().shape(), [1, 0]);
    assert_eq!(match_boxes(&f(&[3, 4]), None, &f(&[1, 0, 4]), &i(&[1]), m).unwrap().i32s(), [0; 3]);
    assert!(match_boxes(&f(&[3, 5]), None, &f(&[1, 2, 4]), &i(&[1]), m).is_err());
    assert!(match_boxes(&f(&[3, 4]), None, &f(&[1, 2, 4]), &i(&[2]), m).is_err());
    assert!(match_boxes(&f(&[3, 4]), Some(&i(&[1, 2])), &f(&[1, 2, 4]), &i(&[1]), m).is_err());
}
