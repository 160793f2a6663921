//! An evaluation pass: features, raw outputs of both stages, detections.

use upres::device::Device;
use upres::models::{BackboneMode, BoxFrame, Inputs};
use upres::tape::{Tape, Var};
use upres::tensor::Tensor;

use crate::harness::*;
use crate::support::fixtures::*;

/// Tolerance of f32 through 53 convolutions; torch's own f32 is as far from its f64.
const FORWARD: f64 = 1e-4;

#[test]
fn a_pass_is_that_of_mmdetection() {
    let recipe = recipe();
    let r = Reference::new(&recipe);
    r.load_weights();
    let f = Fixture::open("detectors/faster");
    let inputs = inputs(&r.device, &recipe, true);
    let mut tape = Tape::inference(&r.device);
    let image = tape.constant(image(&r.device));

    let mut errors = Errors::new("eval: C2 to C5", FORWARD);
    let c = r.model.backbone.forward(&mut tape, &image, BackboneMode::EVALUATION, None).unwrap();
    for (i, c) in c.iter().enumerate() {
        errors.nhwc(&f, &format!("eval.backbone.{i}"), c.value().f32s());
    }
    errors.check();

    let mut errors = Errors::new("eval: P2 to P6", FORWARD);
    let p = r.model.neck.forward(&mut tape, &c).unwrap();
    assert_eq!(p.len(), 5);
    for (i, p) in p.iter().enumerate() {
        errors.nhwc(&f, &format!("eval.fpn.{i}"), p.value().f32s());
    }
    errors.check();

    let mut errors = Errors::new("eval: RPN raw outputs", FORWARD);
    let out = r.faster().rpn.forward(&mut tape, &p).unwrap();
    let sizes = inputs.anchors.level_sizes();
    for level in 0..5 {
        errors.nhwc(&f, &format!("eval.rpn_cls.{level}"), &level_of(out.logits.value(), &sizes, level));
        errors.nhwc(&f, &format!("eval.rpn_reg.{level}"), &level_of(out.deltas.value(), &sizes, level));
    }
    errors.check();

    box_head(&r, &mut tape, &f, &p);
    whole_pass(&r, &mut tape, &f, &image, &inputs);
}

fn box_head(r: &Reference, tape: &mut Tape, f: &Fixture, p: &[Var]) {
    let mut errors = Errors::new("eval: box head on stored proposals", FORWARD);
    let stored = proposals(&r.device, f, "eval.proposals");
    let out = r.faster().box_head.forward(tape, p, &stored.boxes, &stored.valid).unwrap();
    errors.tensor(f, "eval.roi.cls_score", out.logits.value().f32s());
    errors.tensor(f, "eval.roi.bbox_pred", out.deltas.value().f32s());
    errors.check();

    let mut errors = Errors::new("eval: box head on RoIs at borders, outside, empty", FORWARD);
    let fixed = FixedRois::new(&r.device);
    let pooled = r.faster().box_head.pool(tape, p, &fixed.boxes, &fixed.idx).unwrap();
    let feats = fixed.pick(pooled.value(), 7 * 7 * 256);
    errors.nhwc(f, "fixed.bbox_feats", &feats);
    let out = r.faster().box_head.head(tape, pooled).unwrap();
    errors.tensor(f, "fixed.cls_score", &fixed.pick(out.logits.value(), CLASSES + 1));
    errors.tensor(f, "fixed.bbox_pred", &fixed.pick(out.deltas.value(), 4 * CLASSES));
    errors.check();
}

/// The fixed RoIs of both images as `[2,n]` rows: `idx` is -1 where a RoI belongs to the other image.
struct FixedRois {
    boxes: Tensor,
    idx: Tensor,
    images: Vec<usize>,
}

impl FixedRois {
    fn new(device: &Device) -> Self {
        let rois = Fixture::open("detectors/inputs").f32("fixed.rois");
        let n = rois.len() / 5;
        let images: Vec<usize> = rois.chunks(5).map(|r| r[0] as usize).collect();
        assert!(images.contains(&0) && images.contains(&1));
        let one: Vec<f32> = rois.chunks(5).flat_map(|r| r[1..].to_vec()).collect();
        let idx: Vec<i32> = (0..2)
            .flat_map(|b| images.iter().enumerate().map(move |(i, &image)| if image == b { i as i32 } else { -1 }))
            .collect();
        let boxes = tensor(device, &[2, n, 4], &[one.clone(), one].concat());
        FixedRois { boxes, idx: tensor(device, &[2, n], &idx), images }
    }

    /// The row of each RoI in its own image.
    fn pick(&self, x: &Tensor, width: usize) -> Vec<f32> {
        let n = self.images.len();
        let rows = self.images.iter().enumerate().map(|(i, image)| (image * n + i) * width);
        rows.flat_map(|at| x.f32s()[at..][..width].to_vec()).collect()
    }
}

/// From the image to detections without any injected values. Two scores of image 1 are 3e-6 apart, so the order is not
/// compared, and one pair of the 100 may be missing.
fn whole_pass(r: &Reference, tape: &mut Tape, f: &Fixture, image: &Var, inputs: &Inputs) {
    for (key, frame) in [("rescale0", BoxFrame::Network), ("rescale1", BoxFrame::Original)] {
        let d = r.model.detect_from_image(tape, image.clone(), inputs, frame).unwrap();
        let n = d.scores.dim(1);
        for i in 0..2 {
            let key = format!("eval.det.{key}.{i}");
            let (boxes, scores, labels) =
                (f.f32(&format!("{key}.bboxes")), f.f32(&format!("{key}.scores")), f.i32(&format!("{key}.labels")));
            let found = |k: &usize| {
                (i * n..(i + 1) * n).any(|j| {
                    let near = |a: &[f32], b: &[f32], by: f32| a.iter().zip(b).all(|(a, b)| (a - b).abs() < by);
                    d.classes.i32s()[j] == labels[*k]
                        && near(&d.scores.f32s()[j..=j], &scores[*k..=*k], 1e-4)
                        && near(&d.boxes.f32s()[j * 4..][..4], &boxes[k * 4..][..4], 1e-2)
                })
            };
            let found = (0..labels.len()).filter(found).count();
            eprintln!("eval: {found} of {} detections of the whole pass ({key})", labels.len());
            assert!(found + 2 >= labels.len(), "{key}: {found} of {}", labels.len());
        }
    }
}
