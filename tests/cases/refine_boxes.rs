//! Boxes of a cascade's next stage: those of `box_decode`, and which of them are proposals; and numbers of mmdetection.

use super::box_decode::STDS;
use super::box_encode::image_sizes as input_sizes;
use super::{Case, case};
use crate::support::fixtures::Fixture;
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::box_decode::box_decode;
use upres::ops::refine_boxes::refine_boxes;
use upres::tensor::Tensor;

/// Whether a sample is a proposal (1), or ground truth or padding (-1). The boxes are those of `box_decode`.
fn naive(idx: i32, truths: usize) -> i32 {
    if idx >= truths as i32 { 1 } else { -1 }
}

/// B, S, slots of ground truth in front.
const CASES: &[Case] = &[
    case("no_image", &[0, 3, 1]),
    case("no_box", &[2, 0, 1]),
    case("one", &[1, 1, 0]),
    case("tail", &[3, 37, 5]),
    case("recipe", &[8, 512, 96]), // several blocks
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, s, truths] = c.dims.try_into().unwrap();
        let (rois, deltas) = (boxes(1, b * s, 90.0), uniform(2, 4 * b * s, -1.0, 1.0));
        let (idx, sizes) = (integers(3, b * s, -1, 2 * truths as i32 + 2), [80.0f32, 120.0, 96.0, 128.0].repeat(b));
        let stds = [0.1, 0.1, 0.2, 0.2];
        let out = everywhere(|dev| {
            let (rois, deltas) = (tensor(dev, &[b, s, 4], &rois), tensor(dev, &[b, s, 4], &deltas));
            let (idx, sizes) = (tensor(dev, &[b, s], &idx), tensor(dev, &[b, 4], &sizes));
            let (boxes, valid) = refine_boxes(&rois, &deltas, &idx, truths, &sizes, stds)?;
            Ok(vec![boxes, valid, box_decode(&rois, &deltas, None, &sizes, stds)?])
        });
        assert_eq!(out[0].f32s(), out[2].f32s(), "{}", c.name);
        let valid = idx.iter().map(|&i| naive(i, truths));
        assert_eq!(out[1].i32s(), valid.collect::<Vec<_>>(), "{}", c.name);
    }
}

/// Refines the samples of two stages of a whole Cascade R-CNN. Five slots of ground truth precede the proposals; the
/// second image uses three of them.
#[test]
fn equals_mmdetections_cascade() {
    let (inputs, f) = (Fixture::open("detectors/inputs"), OpFixture::open("cascade"));
    let sizes = input_sizes(&inputs);
    for (stage, (name, stds)) in STDS[1..3].iter().enumerate() {
        let both = |what: &str| [0, 1].map(|b| f.f32(&format!("s{stage}.{what}.{b}"))).concat();
        let own: Vec<Vec<i32>> = (0..2).map(|b| f.i32(&format!("s{stage}.idx.{b}"))).collect();
        // Proposals of the second image are two rows further down.
        let second = own[1].iter().map(|&i| if i < 3 { i } else { i + 2 });
        let mut idx: Vec<i32> = own[0].iter().copied().chain(second).collect();
        idx[1023] = -1; // and one is padding
        let out = everywhere(|dev| {
            let (rois, deltas) =
                (tensor(dev, &[2, 512, 4], &both("rois")), tensor(dev, &[1024, 4], &both("bbox_pred")));
            let (idx, sizes) = (tensor(dev, &[2, 512], &idx), tensor(dev, &[2, 4], &sizes));
            let (boxes, valid) = refine_boxes(&rois, &deltas, &idx, 5, &sizes, *stds)?;
            Ok(vec![boxes, valid])
        });
        let (boxes, valid) = (out[0].f32s(), out[1].i32s());
        assert!(valid.iter().all(|v| [-1, 1].contains(v)) && valid[1023] == -1);
        for b in 0..2 {
            let of_image = (512 * b..512 * (b + 1)).filter(|&i| valid[i] == 1);
            let kept: Vec<f32> = of_image.flat_map(|i| boxes[4 * i..][..4].to_vec()).collect();
            let want = f.f32(&format!("s{stage}.refined.{b}"));
            assert_close(&format!("{name}, image {b}"), &kept, &wide(&want[..want.len() - 4 * b]), 1e-4, 1e-6);
        }
    }
}

/// At test time the boxes of a stage are the RoIs of the next.
#[test]
fn stages_follow_each_other_as_in_mmdetection() {
    let (inputs, f) = (Fixture::open("detectors/inputs"), OpFixture::open("cascade"));
    let sizes = input_sizes(&inputs);
    let boxes_of = |stage: usize| -> Vec<f32> {
        f.f32(&format!("eval.s{stage}.rois")).chunks(5).flat_map(|r| r[1..].to_vec()).collect()
    };
    for (stage, (name, stds)) in STDS[1..3].iter().enumerate() {
        let out = everywhere(|dev| {
            let rois = tensor(dev, &[2, 30, 4], &boxes_of(stage));
            let deltas = tensor(dev, &[60, 4], &f.f32(&format!("eval.s{stage}.bbox_pred")));
            let idx = tensor(dev, &[2, 30], &[0; 60]);
            let (boxes, valid) = refine_boxes(&rois, &deltas, &idx, 0, &tensor(dev, &[2, 4], &sizes), *stds)?;
            Ok(vec![boxes, valid])
        });
        assert_close(name, &out[0].f32s(), &wide(&boxes_of(stage + 1)), 1e-4, 1e-6);
        assert_eq!(out[1].i32s(), [1; 60], "without ground truth in front all go on");
    }
}

#[test]
fn what_cannot_be_refined_is_named() {
    let dev = Device::cpu();
    let zeros = |shape: &[usize]| Tensor::zeros(&dev, shape, upres::tensor::DType::F32).unwrap();
    let message = |deltas: &[usize], idx: usize| {
        let idx = tensor(&dev, &[2, idx], &vec![0; 2 * idx]);
        refine_boxes(&zeros(&[2, 3, 4]), &zeros(deltas), &idx, 1, &zeros(&[2, 4]), [1.0; 4]).unwrap_err().to_string()
    };
    assert!(message(&[6, 8], 3).starts_with("refine_boxes: deltas: want [24]"));
    assert!(message(&[6, 4], 4).starts_with("refine_boxes: idx: want [2, 3]"));
    let none = tensor::<i32>(&dev, &[2, 0], &[]);
    let (boxes, valid) =
        refine_boxes(&zeros(&[2, 0, 4]), &zeros(&[0, 4]), &none, 1, &zeros(&[2, 4]), [1.0; 4]).unwrap();
    assert!(boxes.shape() == [2, 0, 4] && valid.shape() == [2, 0]);
}
