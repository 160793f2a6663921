//! Targets of all anchors: those of `labels` and `box_encode` for samples that are all; and numbers of mmdetection.

use super::box_decode::STDS;
use super::box_encode::{ground_truth, image_sizes, retinanet_anchors};
use super::{Case, case};
use crate::support::fixtures::Fixture;
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::anchors_valid::anchors_valid;
use upres::ops::avg_factor::{AvgFactor, avg_factor};
use upres::ops::box_encode::box_encode;
use upres::ops::dense_targets::dense_targets;
use upres::ops::labels::labels;
use upres::ops::match_boxes::{Matcher, match_boxes};

/// B, N, G: every anchor.
const CASES: &[Case] = &[
    case("no_images", &[0, 3, 2]),
    case("no_anchors", &[2, 0, 2]),
    case("no_ground_truth", &[2, 3, 0]),
    case("one", &[1, 1, 1]),
    case("tail", &[3, 33, 5]),
    case("tasks", &[2, 3001, 9]), // several tasks, and blocks of a GPU
];

#[test]
fn dense_targets_are_those_of_samples_that_are_all() {
    for c in CASES {
        let [b, n, g] = c.dims.try_into().unwrap();
        let (anchors, truth) = (boxes(1, n, 100.0), boxes(2, b * g, 100.0));
        let assigned = integers(3, b * n, -2, g as i32 + 1);
        let classes = integers(4, b * g, 0, 80);
        let out = everywhere(|dev| {
            let assigned = tensor(dev, &[b, n], &assigned);
            let (anchors, truth) = (tensor(dev, &[n, 4], &anchors), tensor(dev, &[b, g, 4], &truth));
            let t = dense_targets(&anchors, &assigned, &truth, &tensor(dev, &[b, g], &classes), 80, STDS[1].1)?;
            Ok(vec![t.classes, t.box_labels, t.boxes, t.counts])
        });
        let dev = Device::cpu();
        let gt: Vec<i32> = assigned.iter().map(|&a| if a > 0 { a - 1 } else { -1 }).collect();
        let gt = tensor(&dev, &[b, n], &gt);
        let rois = tensor(&dev, &[b, n, 4], &anchors.repeat(b));
        let (truth, classes) = (tensor(&dev, &[b, g, 4], &truth), tensor(&dev, &[b, g], &classes));
        let idx = tensor(&dev, &[b, n], &assigned); // below 0: no sample
        assert_eq!(out[0].i32s(), labels(&gt, &idx, &classes, 80).unwrap().i32s(), "{}", c.name);
        assert_eq!(out[1].i32s(), gt.i32s().iter().map(|&g| 0.min(g)).collect::<Vec<_>>(), "{}", c.name);
        assert_eq!(out[2].f32s(), box_encode(&rois, &truth, &gt, STDS[1].1).unwrap().f32s(), "{}", c.name);
        let count =
            |image: usize, of: fn(i32) -> bool| assigned[image * n..][..n].iter().filter(|a| of(**a)).count() as i32;
        let want: Vec<i32> = (0..b).flat_map(|i| [count(i, |a| a > 0), count(i, |a| a == 0)]).collect();
        assert_eq!(out[3].i32s(), want, "{}", c.name);
    }
}

/// Anchors, matching and targets of a whole RetinaNet.
#[test]
fn equals_mmdetections_retinanet() {
    let (inputs, f) = (Fixture::open("detectors/inputs"), OpFixture::open("dense"));
    let (truth, truth_labels) = ground_truth(&inputs, 5);
    let out = everywhere(|dev| {
        let anchors = retinanet_anchors(dev)?;
        let sizes = tensor(dev, &[2, 4], &image_sizes(&inputs));
        let valid = anchors_valid(anchors.grid(), &sizes, -1.0)?;
        let (truth, count) = (tensor(dev, &[2, 5, 4], &truth), tensor(dev, &[2], &[5, 3]));
        let matcher = Matcher { pos_iou: 0.5, neg_iou: 0.4, min_pos_iou: 0.0, low_quality: true };
        let assigned = match_boxes(&anchors.boxes, Some(&valid), &truth, &count, matcher)?;
        let labels = tensor(dev, &[2, 5], &truth_labels);
        let t = dense_targets(&anchors.boxes, &assigned, &truth, &labels, 80, [1.0; 4])?;
        let avg = avg_factor(&t.counts, AvgFactor::Dense)?;
        Ok(vec![t.classes, t.box_labels, t.boxes, avg])
    });
    let want: Vec<i32> = f.u8("retina.labels").iter().map(|&l| i32::from(l as i8)).collect();
    assert_eq!(out[0].i32s(), want);
    let n = want.len() / 2;
    let positive = f.i32("retina.pos_index").chunks(2).map(|p| p[0] as usize * n + p[1] as usize).collect::<Vec<_>>();
    let got: Vec<usize> = (0..2 * n).filter(|&i| out[1].i32s()[i] == 0).collect();
    assert_eq!(got, positive);
    let boxes: Vec<f32> = positive.iter().flat_map(|&i| out[2].f32s()[4 * i..][..4].to_vec()).collect();
    assert_close("targets", &boxes, &wide(&f.f32("retina.pos_bbox_targets")), 1e-6, 1e-5);
    assert_eq!(out[3].f32s(), [197.0]);
}
