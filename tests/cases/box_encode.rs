//! Deltas and labels of sampled and of dense boxes, against the definition and mmdetection.

use super::box_decode::STDS;
use super::{Case, case};
use crate::support::fixtures::Fixture;
use crate::support::tensors::*;
use upres::detection::anchors::Anchors;
use upres::device::Device;
use upres::error::Result;
use upres::models::config::RetinaHeadConfig;
use upres::ops::box_decode::box_decode;
use upres::ops::box_encode::box_encode;
use upres::ops::labels::labels;
use upres::tensor::{DType, Tensor};

/// The definition: how far the ground truth `t` is from the box `p`, in units of the box's sides and of `stds`.
fn naive(p: &[f32], t: &[f32], stds: [f32; 4]) -> [f64; 4] {
    let (p, t, stds) = (wide(p), wide(t), wide(&stds));
    let (pw, ph, tw, th) = (p[2] - p[0], p[3] - p[1], t[2] - t[0], t[3] - t[1]);
    let dx = (t[0] + tw / 2.0 - p[0] - pw / 2.0) / pw;
    let dy = (t[1] + th / 2.0 - p[1] - ph / 2.0) / ph;
    [dx / stds[0], dy / stds[1], (tw / pw).ln() / stds[2], (th / ph).ln() / stds[3]]
}

/// B, S, G.
const CASES: &[Case] = &[
    case("no_images", &[0, 3, 2]),
    case("no_samples", &[2, 0, 2]),
    case("no_ground_truth", &[2, 3, 0]), // all zeros
    case("one", &[1, 1, 1]),
    case("tail", &[3, 33, 5]),
    case("tasks", &[2, 1500, 9]), // several tasks, and the border between images inside one
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, s, g] = c.dims.try_into().unwrap();
        let (rois, truth) = (boxes(1, b * s, 100.0), boxes(2, b * g, 100.0));
        let gt = integers(3, b * s, -1, g as i32 + 1);
        for (set, stds) in STDS {
            let out = everywhere(|dev| {
                let (rois, truth) = (tensor(dev, &[b, s, 4], &rois), tensor(dev, &[b, g, 4], &truth));
                Ok(vec![box_encode(&rois, &truth, &tensor(dev, &[b, s], &gt), stds)?])
            });
            let mut want = Vec::new();
            for (r, &i) in gt.iter().enumerate() {
                if !(0..g as i32).contains(&i) {
                    want.extend([0.0; 4]);
                    continue;
                }
                want.extend(naive(&rois[4 * r..][..4], &truth[4 * (r / s * g + i as usize)..][..4], stds));
            }
            assert_close(&format!("{} {set}", c.name), &out[0].f32s(), &want, 5e-4, 1e-4);
        }
    }
}

#[test]
fn equals_mmdetection() {
    let f = OpFixture::open("bbox_coder");
    let (rois, truth) = (f.f32("rois"), f.f32("gt"));
    let n = rois.len() / 4;
    let gt: Vec<i32> = (0..n as i32).collect();
    for (set, stds) in STDS {
        let out = everywhere(|dev| {
            let (rois, truth) = (tensor(dev, &[1, n, 4], &rois), tensor(dev, &[1, n, 4], &truth));
            Ok(vec![box_encode(&rois, &truth, &tensor(dev, &[1, n], &gt), stds)?])
        });
        assert_close(set, &out[0].f32s(), &wide(&f.f32(&format!("{set}.encode"))), 1e-6, 2e-6);
    }
}

/// Boxes `[2,G,4]` and labels `[2,G]` of the detectors' input.
pub(super) fn ground_truth(inputs: &Fixture, g: usize) -> (Vec<f32>, Vec<i32>) {
    let (mut truth, mut truth_labels) = (vec![0.0f32; 2 * g * 4], vec![-1; 2 * g]);
    for b in 0..2 {
        let (boxes, labels) = (inputs.f32(&format!("gt.{b}.boxes")), inputs.i32(&format!("gt.{b}.labels")));
        truth[b * g * 4..][..boxes.len()].copy_from_slice(&boxes);
        truth_labels[b * g..][..labels.len()].copy_from_slice(&labels);
    }
    (truth, truth_labels)
}

/// Image and padded sizes `[2,4]` of the detectors' input.
pub(super) fn image_sizes(inputs: &Fixture) -> Vec<f32> {
    let meta = |b: usize, key: &str, i: usize| inputs.value("metas")[b][key][i].as_f64().unwrap() as f32;
    (0..2).flat_map(|b| ["img_shape", "pad_shape"].map(|key| [meta(b, key, 0), meta(b, key, 1)]).concat()).collect()
}

/// RetinaNet's anchors for the detectors' input.
pub(super) fn retinanet_anchors(dev: &Device) -> Result<Anchors> {
    Anchors::new(dev, &RetinaHeadConfig::default().anchors(), 160, 192)
}

/// Labels and targets of the sampled RoIs of a whole detector.
#[test]
fn equals_mmdetections_faster_rcnn() {
    let (inputs, f) = (Fixture::open("detectors/inputs"), Fixture::open("detectors/faster"));
    let g = 5;
    let (truth, truth_labels) = ground_truth(&inputs, g);
    for mode in ["pretrain", "finetune"] {
        let rois: Vec<f32> = f.f32(&format!("{mode}.rois")).chunks(5).flat_map(|r| r[1..].to_vec()).collect();
        let (mut gt, mut idx) = (vec![-1; 1024], vec![0; 1024]);
        for b in 0..2 {
            let assigned = f.i32(&format!("{mode}.pos_assigned_gt.{b}"));
            gt[b * 512..][..assigned.len()].copy_from_slice(&assigned);
            idx[b * 512..][..assigned.len()].copy_from_slice(&f.i32(&format!("{mode}.pos_inds.{b}")));
        }
        let out = everywhere(|dev| {
            let gt = tensor(dev, &[2, 512], &gt);
            let (rois, truth) = (tensor(dev, &[2, 512, 4], &rois), tensor(dev, &[2, g, 4], &truth));
            let (idx, truth_labels) = (tensor(dev, &[2, 512], &idx), tensor(dev, &[2, g], &truth_labels));
            Ok(vec![box_encode(&rois, &truth, &gt, STDS[1].1)?, labels(&gt, &idx, &truth_labels, 80)?])
        });
        assert_close(mode, &out[0].f32s(), &wide(&f.f32(&format!("{mode}.bbox_targets"))), 1e-5, 1e-5);
        assert_eq!(out[1].i32s(), f.i32(&format!("{mode}.labels")), "{mode}");
    }
}

#[test]
fn decoding_gives_the_ground_truth_back() {
    let (rois, truth) = (boxes(1, 200, 100.0), boxes(2, 200, 100.0));
    let gt: Vec<i32> = (0..200).collect();
    let dev = Device::cpu();
    let (p, t) = (tensor(&dev, &[1, 200, 4], &rois), tensor(&dev, &[1, 200, 4], &truth));
    for (set, stds) in STDS {
        let d = box_encode(&p, &t, &tensor(&dev, &[1, 200], &gt), stds).unwrap();
        let y = box_decode(&p, &d, None, &tensor(&dev, &[1, 4], &[1e4f32; 4]), stds).unwrap();
        assert_close(set, y.f32s(), &wide(&truth), 1e-3, 1e-5);
    }
}

#[test]
fn degenerate_boxes_do_not_stop_the_program() {
    let rows = [[f32::NAN; 4], [f32::INFINITY; 4], [1.0; 4], [3.0, 3.0, 1.0, 1.0]].concat();
    for gt in 0..4 {
        let out = everywhere(|dev| {
            let t = tensor(dev, &[1, 4, 4], &rows);
            Ok(vec![box_encode(&t, &t, &tensor(dev, &[1, 4], &[gt, gt, -1, gt]), [0.0; 4])?])
        });
        assert_eq!(out[0].f32s()[8..12], [0.0; 4], "not positive: whatever the boxes are");
    }
}

#[test]
fn labels_of_samples() {
    let out = everywhere(|dev| {
        let gt = tensor(dev, &[2, 4], &[1, -1, 0, -1, 2, 0, -1, 1]);
        let idx = tensor(dev, &[2, 4], &[8, 0, 3, -1, 5, 6, 7, -1]);
        Ok(vec![labels(&gt, &idx, &tensor(dev, &[2, 3], &[10, 11, -1, 20, 21, 22]), 80)?])
    });
    assert_eq!(out[0].i32s(), [11, 80, 10, -1, 22, 20, 80, -1]);
    let dev = Device::cpu();
    let none = tensor::<i32>(&dev, &[2, 0], &[]);
    assert_eq!(labels(&none, &none, &none, 3).unwrap().shape(), [2, 0]);
    let two = tensor(&dev, &[2, 1], &[-1, 0]);
    assert_eq!(labels(&two, &tensor(&dev, &[2, 1], &[4, 4]), &none, 3).unwrap().i32s(), [3, 3]);
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let zeros = |shape: &[usize]| Tensor::zeros(&dev, shape, DType::F32).unwrap();
    let gt = tensor(&dev, &[2, 3], &[0; 6]);
    let message = |rois: &[usize], truth: &[usize]| {
        box_encode(&zeros(rois), &zeros(truth), &gt, [1.0; 4]).unwrap_err().to_string()
    };
    assert!(message(&[2, 3, 4], &[1, 3, 4]).starts_with("box_encode: gt_boxes: want [2, 3, 4]"));
    assert!(message(&[2, 4, 4], &[2, 3, 4]).starts_with("box_encode: gt: want [2, 4]"));
    assert!(labels(&gt, &zeros(&[2, 3]), &gt, 1).unwrap_err().to_string().starts_with("labels: idx: want i32"));
}
