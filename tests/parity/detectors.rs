//! Cascade R-CNN, Mask R-CNN on ResNet and Swin, and RetinaNet: evaluation passes, losses, gradients. `evaluation`,
//! `training` and `stored` examine Faster R-CNN more closely.

use upres::detection::mask_paste::paste;
use upres::models::{BackboneMode, BoxFrame, Detections, Inputs};
use upres::tape::Tape;

use crate::harness::*;
use crate::support::fixtures::*;
use crate::training::{BATCH_NORM, FROZEN_NORM, Pass, Tolerances};

/// Without batch norm rounding is not amplified: torch's own f32 is within 1e-3 of its f64.
const LAYER_NORM: Tolerances = Tolerances { forward: 1e-4, l2: 1e-3, dot: 5e-3, dot_median: 3e-4, whole: 1e-2 };

/// The training passes of a detector.
fn training(detector: &str, pretrain: &Tolerances, finetune: &Tolerances) {
    let recipe = recipe_of(detector);
    let (r, f) = (Reference::of(detector, &recipe), Fixture::open(&format!("detectors/{detector}")));
    let (first, second) = (stage(&recipe, "pretrain"), stage(&recipe, "finetune"));
    let pass = |setup, mode, tolerances| Pass::new(&r, &recipe, &f, setup, mode, tolerances);
    pass(&first, "pretrain", pretrain).losses_and_gradients("pretrain.grad_summary_f64");
    pass(&first, "pretrain_nogt1", pretrain).losses_and_gradients("pretrain_nogt1.grad_summary");
    pass(&second, "finetune", finetune).losses_and_gradients("finetune.grad_summary");
}

/// Features and detections of an evaluation pass; `keys` are the fixtures' detections in network and in original
/// pixels.
fn evaluation(detector: &str, keys: &[(&str, bool)], change: impl Fn(&mut upres::recipe::Recipe)) {
    let mut recipe = recipe_of(detector);
    change(&mut recipe);
    let (r, f) = (Reference::of(detector, &recipe), Fixture::open(&format!("detectors/{detector}")));
    r.load_weights();
    let inputs = inputs(&r.device, &recipe, true);
    let mut tape = Tape::inference(&r.device);
    let image = tape.constant(image(&r.device));
    // These two detectors have the same backbone weights by name, so their features are Faster R-CNN's, where they are
    // stored.
    let same = matches!(detector, "cascade" | "mask");
    let features = Fixture::open(&format!("detectors/{}", if same { "faster" } else { detector }));
    let mut errors = Errors::new("eval: features", 1e-4);
    let p = r.model.features(&mut tape, image.clone(), BackboneMode::EVALUATION, None).unwrap();
    for (i, p) in p.iter().enumerate() {
        errors.nhwc(&features, &format!("eval.fpn.{i}"), p.value().f32s());
    }
    errors.check();
    for (key, rescale) in keys {
        let d = r.model.detect_from_image(&mut tape, image.clone(), &inputs, frame(*rescale)).unwrap();
        compare(&f, key, &d, &inputs, *rescale);
    }
}

/// The boxes of mmdetection's `rescale`.
fn frame(rescale: bool) -> BoxFrame {
    if rescale { BoxFrame::Original } else { BoxFrame::Network }
}

/// Two scores may be closer to each other than the programs are, so the order is not compared, and one pair may be
/// missing.
fn compare(f: &Fixture, key: &str, d: &Detections, inputs: &Inputs, rescale: bool) {
    let n = d.scores.dim(1);
    for i in 0..2 {
        let key = format!("{key}.{i}");
        let (boxes, scores) = (f.f32(&format!("{key}.bboxes")), f.f32(&format!("{key}.scores")));
        let labels = f.i32(&format!("{key}.labels"));
        let scale: [f32; 2] = inputs.scale.f32s()[2 * i..][..2].try_into().unwrap();
        let scale = if rescale && d.frame == BoxFrame::Network { scale } else { [1.0; 2] };
        let of = |j: usize| -> [f32; 4] { std::array::from_fn(|k| d.boxes.f32s()[4 * j + k] / scale[k % 2]) };
        let near = |a: &[f32], b: &[f32], by: f32| a.iter().zip(b).all(|(a, b)| (a - b).abs() < by);
        let place = |k: usize| {
            (i * n..(i + 1) * n).find(|&j| {
                d.classes.i32s()[j] == labels[k]
                    && near(&d.scores.f32s()[j..=j], &scores[k..=k], 1e-4)
                    && near(&of(j), &boxes[4 * k..][..4], 1e-2)
            })
        };
        let found: Vec<_> = (0..labels.len()).map(place).collect();
        let count = found.iter().flatten().count();
        eprintln!("eval: {count} of {} detections ({key})", labels.len());
        assert!(count + 2 >= labels.len(), "{key}: {count} of {}", labels.len());
        let (Some(masks), true) = (&d.masks, rescale) else { continue };
        let key = format!("{key}.masks_packed");
        let (bits, shape) = (f.bits(&key), f.shape(&key));
        let (h, w) = (shape[1], shape[2]);
        let (mut apart, mut all) = (0, 0);
        for (k, j) in found.iter().enumerate().take(shape[0]) {
            let Some(j) = *j else { continue };
            let probs: Vec<f32> = masks.f32s()[j * 784..][..784].iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
            let rle = paste(&probs, 28, of(j), w, h, 0.5);
            let columns = hotcoco::mask::decode(&rle);
            let got = (0..h * w).map(|i| columns[i % w * h + i / w]);
            apart += got.zip(&bits[k * h * w..]).filter(|(a, b)| a != *b).count();
            all += h * w;
        }
        eprintln!("eval: {apart} of {all} pixels of masks differ ({key})");
        assert!(1000 * apart <= all && all > 0, "{key}: {apart} of {all} pixels");
    }
}

#[test]
fn cascade_rcnn_evaluates_as_mmdetections() {
    let keys = [("eval.det.rescale0", false), ("eval.det.rescale1", true)];
    evaluation("cascade", &keys, |_| ());
}

#[test]
fn cascade_rcnn_learns_as_mmdetections() {
    training("cascade", &BATCH_NORM, &FROZEN_NORM);
}

#[test]
fn mask_rcnn_evaluates_as_mmdetections() {
    evaluation("mask", &[("eval.det.rescale1", true)], |_| ());
}

#[test]
fn mask_rcnn_learns_as_mmdetections() {
    training("mask", &BATCH_NORM, &FROZEN_NORM);
}

#[test]
fn mask_rcnn_on_swin_evaluates_as_mmdetections() {
    evaluation("mask_swin", &[("eval.det.rescale1", true)], |_| ());
}

#[test]
fn mask_rcnn_on_swin_learns_as_mmdetections() {
    training("mask_swin", &LAYER_NORM, &LAYER_NORM);
}

/// Both versions of mmdetection.
#[test]
fn retinanet_evaluates_as_mmdetections() {
    use upres::models::config::Selection;
    evaluation("retinanet", &[("eval.det213.rescale0", false)], |_| ());
    evaluation("retinanet", &[("eval.det213_nmspre50.rescale0", false)], |r| r.model.retina_head.nms_pre = 50);
    let keys = [("eval.det.rescale0", false), ("eval.det.rescale1", true)];
    evaluation("retinanet", &keys, |r| r.model.retina_head.selection = Selection::Pairs);
    evaluation("retinanet", &[("eval.det_nmspre50.rescale0", false)], |r| {
        (r.model.retina_head.selection, r.model.retina_head.nms_pre) = (Selection::Pairs, 50);
    });
}

#[test]
fn retinanet_learns_as_mmdetections() {
    training("retinanet", &BATCH_NORM, &FROZEN_NORM);
}
