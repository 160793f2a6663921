//! Proposals, detections, samples and targets that follow from stored raw outputs and proposals without weights.
//! Indices and order must be equal here.

use upres::models::box_head::{BoxHead, BoxOutput};
use upres::models::rpn::Rpn;
use upres::models::{BoxFrame, Inputs, Sampling};
use upres::nn::ParamStore;
use upres::ops::avg_factor::{AvgFactor, avg_factor};
use upres::recipe::Recipe;
use upres::tape::Tape;

use crate::harness::*;
use crate::support::fixtures::*;

/// Both heads of the recipe; their weights do not matter.
struct Heads {
    store: ParamStore,
    recipe: Recipe,
    rpn: Rpn,
    box_head: BoxHead,
}

impl Heads {
    fn new() -> Self {
        let mut recipe = recipe();
        (recipe.model.box_head.conv_channels, recipe.model.box_head.fc_channels) = (8, 8);
        let mut store = ParamStore::new(&upres::device::Device::cpu());
        let rpn = Rpn::new(&mut store.builder(0).sub("rpn_head"), &recipe.model.rpn, 8).unwrap();
        let mut b = store.builder(0);
        let box_head = BoxHead::new(&mut b, &recipe.model.box_head, 8, recipe.model.roi_strides(), CLASSES).unwrap();
        Heads { store, recipe, rpn, box_head }
    }

    fn inputs(&self, objects_in_second: bool) -> Inputs {
        inputs(self.store.device(), &self.recipe, objects_in_second)
    }
}

#[test]
fn proposals_of_stored_outputs_are_the_same_in_the_same_order() {
    let (h, f) = (Heads::new(), Fixture::open("detectors/faster"));
    let inputs = h.inputs(true);
    let mut tape = Tape::inference(h.store.device());
    let out = rpn_output(&mut tape, &f, "eval");
    let p = h.rpn.test_proposals(&out, &inputs).unwrap();
    let n = p.valid.dim(1);
    assert!(p.valid.i32s().iter().all(|&v| v == 1), "300 of each image");
    let mut boxes = Errors::new("proposals of stored outputs, boxes in px", 1e-3);
    let mut scores = Errors::new("proposals of stored outputs, scores", 1e-6);
    for i in 0..2 {
        let key = format!("eval.proposals.{i}");
        boxes.slices(&key, &p.boxes.f32s()[i * n * 4..][..n * 4], &f.f32(&format!("{key}.bboxes")));
        let got: Vec<f32> = p.logits.f32s()[i * n..][..n].iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        scores.slices(&key, &got, &f.f32(&format!("{key}.scores")));
    }
    boxes.check();
    scores.check();
}

#[test]
fn detections_of_stored_outputs_are_the_same_in_the_same_order() {
    let (h, f) = (Heads::new(), Fixture::open("detectors/faster"));
    let inputs = h.inputs(true);
    let mut tape = Tape::inference(h.store.device());
    let stored = proposals(h.store.device(), &f, "eval.proposals");
    let rois: Vec<f32> = f.f32("eval.roi.rois").chunks(5).flat_map(|r| r[1..].to_vec()).collect();
    assert_eq!(stored.boxes.f32s(), rois, "300 RoIs of each image, in order");
    let mut raw = |name: &str, columns: usize| {
        let x = tensor(h.store.device(), &[600, columns], &f.f32(name));
        tape.constant(x)
    };
    let out =
        BoxOutput { logits: raw("eval.roi.cls_score", CLASSES + 1), deltas: raw("eval.roi.bbox_pred", 4 * CLASSES) };
    let mut boxes = Errors::new("detections of stored outputs, boxes in px", 1e-3);
    let mut scores = Errors::new("detections of stored outputs, scores", 1e-6);
    for (key, frame) in [("rescale0", BoxFrame::Network), ("rescale1", BoxFrame::Original)] {
        let d = h.box_head.detections(&out, &stored.boxes, &stored.valid, &inputs, frame).unwrap();
        let n = d.scores.dim(1);
        for i in 0..2 {
            let key = format!("eval.det.{key}.{i}");
            assert_eq!(d.classes.i32s()[i * n..][..n], f.i32(&format!("{key}.labels")), "{key}");
            boxes.slices(&key, &d.boxes.f32s()[i * n * 4..][..n * 4], &f.f32(&format!("{key}.bboxes")));
            scores.slices(&key, &d.scores.f32s()[i * n..][..n], &f.f32(&format!("{key}.scores")));
        }
    }
    boxes.check();
    scores.check();
}

#[test]
fn sampled_anchors_and_their_targets_are_the_same() {
    let (h, f) = (Heads::new(), Fixture::open("detectors/faster"));
    let mut errors = Errors::new("RPN box targets", 1e-6);
    for mode in ["pretrain", "finetune", "pretrain_nogt1"] {
        let inputs = h.inputs(mode != "pretrain_nogt1");
        let n = inputs.anchors.boxes.dim(0);
        let s = h.rpn.sample(&inputs, Sampling::Strided).unwrap();
        let t = h.rpn.targets(&s, &inputs).unwrap();
        // The labels of the fixtures: 0 is an object, everything else is 1, sampled or not.
        let (mut labels, mut weights) = (vec![1u8; 2 * n], vec![0u8; 2 * n]);
        let (mut pos_index, mut pos_targets) = (Vec::new(), Vec::new());
        let (idx, objects) = (s.idx.i32s(), t.objects.i32s());
        let per_image = s.idx.dim(1);
        for (row, &i) in idx.iter().enumerate().filter(|(_, i)| **i >= 0) {
            let image = row / per_image;
            weights[image * n + i as usize] = 1;
            if objects[row] == 1 {
                labels[image * n + i as usize] = 0;
                pos_index.extend([image as i32, i]);
                pos_targets.extend_from_slice(&t.boxes.f32s()[row * 4..][..4]);
            }
            assert_eq!(t.box_labels.i32s()[row], objects[row] - 1, "boxes are learnt where there is an object");
        }
        assert!(labels == f.u8(&format!("{mode}.rpn_labels")), "{mode}: labels");
        assert!(weights == f.u8(&format!("{mode}.rpn_label_weights")), "{mode}: samples");
        assert_eq!(pos_index, f.i32(&format!("{mode}.rpn_pos_index")), "{mode}: positives");
        errors.slices(mode, &pos_targets, &f.f32(&format!("{mode}.rpn_pos_bbox_targets")));
        let avg = avg_factor(&s.counts, AvgFactor::Rpn).unwrap();
        let want = f.value(&format!("{mode}.rpn_avg_factor")).as_f64().unwrap();
        assert_eq!(f64::from(avg.f32s()[0]), want, "{mode}: divisor");
    }
    errors.check();
}

#[test]
fn sampled_rois_and_their_targets_are_the_same() {
    let (h, f) = (Heads::new(), Fixture::open("detectors/faster"));
    let mut errors = Errors::new("RoI box targets", 1e-5);
    for mode in ["pretrain", "finetune", "pretrain_nogt1"] {
        let inputs = h.inputs(mode != "pretrain_nogt1");
        // Proposals do not depend on the ground truth.
        let given = if mode == "finetune" { "finetune" } else { "pretrain" };
        let stored = proposals(h.store.device(), &f, &format!("{given}.proposals"));
        let s = h.box_head.sample(&stored.boxes, &stored.valid, &inputs, Sampling::Strided).unwrap();
        for i in 0..2 {
            let want: Vec<i32> = f
                .value(&format!("{mode}.num_pos_neg.{i}"))
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_i64().unwrap() as i32)
                .collect();
            assert_eq!(s.counts.i32s()[i * 2..][..2], want, "{mode}: image {i}");
        }
        if mode == "pretrain_nogt1" {
            continue; // counts are all that is stored
        }
        let per_image = s.idx.dim(1);
        for i in 0..2 {
            let (pos, neg) = (s.counts.i32s()[i * 2] as usize, s.counts.i32s()[i * 2 + 1] as usize);
            let gt_count = inputs.gt_count.i32s()[i];
            // upres counts MAX_GT slots for ground truth, mmdetection the objects.
            let theirs = |&i: &i32| if i < MAX_GT as i32 { i } else { i - (MAX_GT as i32 - gt_count) };
            let idx: Vec<i32> = s.idx.i32s()[i * per_image..][..pos + neg].iter().map(theirs).collect();
            let gt = &s.gt.i32s()[i * per_image..][..pos];
            assert_eq!(idx[..pos], f.i32(&format!("{mode}.pos_inds.{i}")), "{mode}: positives of image {i}");
            assert_eq!(idx[pos..], f.i32(&format!("{mode}.neg_inds.{i}")), "{mode}: negatives of image {i}");
            assert_eq!(gt, f.i32(&format!("{mode}.pos_assigned_gt.{i}")), "{mode}: objects of image {i}");
            let is_gt: Vec<u8> = idx[..pos].iter().map(|&i| u8::from(i < gt_count)).collect();
            assert_eq!(is_gt, f.u8(&format!("{mode}.pos_is_gt.{i}")), "{mode}: image {i}");
        }
        let rois: Vec<f32> = f.f32(&format!("{mode}.rois")).chunks(5).flat_map(|r| r[1..].to_vec()).collect();
        assert_eq!(s.rois.f32s(), rois, "{mode}: RoIs");
        let t = h.box_head.targets(&s, &inputs).unwrap();
        assert_eq!(t.classes.i32s(), f.i32(&format!("{mode}.labels")), "{mode}: labels");
        let positive: Vec<u8> = s.gt.i32s().iter().map(|&g| u8::from(g >= 0)).collect();
        assert_eq!(positive, f.u8(&format!("{mode}.bbox_weights")), "{mode}: box weights");
        errors.slices(mode, t.boxes.f32s(), &f.f32(&format!("{mode}.bbox_targets")));
        let avg = avg_factor(&s.counts, AvgFactor::Roi).unwrap();
        assert_eq!(avg.f32s(), [1024.0], "{mode}: divisor");
    }
    errors.check();
}
