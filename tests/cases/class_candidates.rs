//! Candidates for suppression from class scores (two-stage and dense heads), against the definition and mmdetection.

use super::box_decode::naive;
use super::{Case, case};
use crate::support::fixtures::Fixture;
use crate::support::tensors::*;
use upres::detection::kept::detections;
use upres::device::Device;
use upres::error::Result;
use upres::ops::class_candidates::{Candidates, class_candidates, class_candidates_bound};
use upres::ops::softmax::softmax;
use upres::tensor::{DType, Tensor};

/// B, R, K, groups of deltas.
const CASES: &[Case] = &[
    case("no_images", &[0, 3, 4, 4]),
    case("no_rois", &[2, 0, 4, 4]),
    case("no_classes", &[2, 3, 0, 1]), // background only
    case("one_class", &[2, 9, 1, 1]),
    case("agnostic", &[3, 33, 7, 1]),
    case("specific", &[3, 33, 7, 7]),
    case("rows", &[1, 1100, 2, 1]), // more RoIs than a block has threads
    case("coco", &[2, 300, 80, 80]),
];

pub(super) const STDS: [f32; 4] = [0.1, 0.1, 0.2, 0.2];

/// Inputs of one call.
struct Problem {
    b: usize,
    r: usize,
    k: usize,
    groups: usize,
    logits: Vec<f32>,
    deltas: Vec<f32>,
    rois: Vec<f32>,
    valid: Vec<i32>,
    sizes: Vec<f32>,
    threshold: f32,
    scale: Option<Vec<f32>>,
}

impl Problem {
    fn call(&self, dev: &Device, probs: &[f32]) -> Result<Candidates> {
        let (b, r) = (self.b, self.r);
        class_candidates(
            &tensor(dev, &[b, r, self.k + 1], probs),
            &tensor(dev, &[b, r, 4 * self.groups], &self.deltas),
            &tensor(dev, &[b, r, 4], &self.rois),
            &tensor(dev, &[b, r], &self.valid),
            &tensor(dev, &[b, 4], &self.sizes),
            STDS,
            self.threshold,
            self.scale.as_ref().map(|s| tensor(dev, &[b, 2], s)).as_ref(),
        )
    }

    /// (probabilities, boxes, scores, classes)
    fn run(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<i32>) {
        // All devices must compute the same probabilities: their last bit decides which ones pass the threshold.
        let logits = tensor(&Device::cpu(), &[self.b, self.r, self.k + 1], &self.logits);
        let probs = softmax(&logits).expect("probabilities").f32s().to_vec();
        let out = everywhere(|dev| {
            let c = self.call(dev, &probs)?;
            Ok(vec![c.boxes, c.scores, c.classes])
        });
        assert_eq!(out[0].shape(), [self.b, self.n(), 4]);
        assert!(out[1].shape() == [self.b, self.n()] && out[2].shape() == [self.b, self.n()]);
        (probs, out[0].f32s(), out[1].f32s(), out[2].i32s())
    }

    fn n(&self) -> usize {
        self.r * class_candidates_bound(self.k, self.threshold)
    }
}

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, r, k, groups] = c.dims.try_into().unwrap();
        for (threshold, scale) in [(0.05, None), (0.3, Some([0.5, 2.0].repeat(b))), (0.0, None)] {
            let p = Problem {
                b,
                r,
                k,
                groups,
                logits: uniform(1, b * r * (k + 1), -4.0, 4.0),
                deltas: uniform(2, b * r * groups * 4, -3.0, 3.0),
                rois: boxes(3, b * r, 100.0),
                valid: integers(4, b * r, -1, 3),
                sizes: (0..b).flat_map(|i| [80.0 + i as f32, 120.0, 1e4, 1e4]).collect(),
                threshold,
                scale,
            };
            let (probs, boxes, scores, classes) = p.run();
            let (mut want_boxes, mut want_scores, mut want_classes) = (Vec::new(), Vec::new(), Vec::new());
            for image in 0..b {
                let mut found = 0;
                for row in (image * r..(image + 1) * r).filter(|&row| p.valid[row] >= 0) {
                    for class in 0..k {
                        let prob = probs[row * (k + 1) + class];
                        if prob > threshold {
                            let at = row * groups + if groups == 1 { 0 } else { class };
                            let size = (120.0, p.sizes[4 * image]);
                            let y = naive(&p.rois[4 * row..][..4], &p.deltas[4 * at..][..4], STDS, size);
                            let s = p.scale.as_ref().map_or([1.0; 2], |s| [s[2 * image], s[2 * image + 1]]);
                            want_boxes.extend((0..4).map(|i| y[i] / f64::from(s[i % 2])));
                            want_scores.push(f64::from(prob));
                            want_classes.push(class as i32);
                            found += 1;
                        }
                    }
                }
                assert!(found <= p.n(), "{}: {found} candidates for {} places", c.name, p.n());
                want_boxes.resize(4 * p.n() * (image + 1), 0.0);
                want_scores.resize(p.n() * (image + 1), 0.0);
                want_classes.resize(p.n() * (image + 1), -1);
            }
            assert_eq!(classes, want_classes, "{}", c.name);
            assert_close(c.name, &scores, &want_scores, 0.0, 0.0);
            assert_close(c.name, &boxes, &want_boxes, 2e-4, 2e-5);
        }
    }
}

#[test]
fn places_suffice_for_every_softmax() {
    assert_eq!(
        [0.05, 0.3, 0.5, 0.99, 1.0, 2.0, f32::INFINITY].map(|t| class_candidates_bound(80, t)),
        [20, 3, 2, 1, 1, 0, 0]
    );
    assert_eq!([0.0, -1.0, 1e-9, 0.01].map(|t| class_candidates_bound(80, t)), [80, 80, 80, 80]);
    assert_eq!([class_candidates_bound(0, 0.05), class_candidates_bound(3, 0.05)], [0, 3]);
    // n equal logits, of which one becomes slightly larger, and all others far below: the probabilities are 1/n within
    // rounding. The f32 sum is a few ulp smaller than the true one, so all n pass a threshold of 1/n.
    let dev = Device::cpu();
    let mut beyond = 0;
    for n in 1..=80usize {
        let rows = 0..800;
        let logit = |d: usize, i: usize| match i {
            0 => 0.0,
            _ if i < n => d as f32 * -1e-8,
            _ => -1e4,
        };
        let x: Vec<f32> = rows.flat_map(|d| (0..81).map(move |i| logit(d, i))).collect();
        let y = softmax(&tensor(&dev, &[800, 81], &x)).unwrap();
        for threshold in [1.0 / n as f32, (1.0 / n as f32).next_down(), (1.0 / n as f32).next_up()] {
            let most = y.f32s().chunks(81).map(|p| p[..80].iter().filter(|p| **p > threshold).count()).max().unwrap();
            assert!(most <= class_candidates_bound(80, threshold), "{most} of {n} classes above {threshold}");
            beyond += usize::from(most as f64 * f64::from(threshold) >= 1.0);
        }
    }
    assert!(beyond > 0, "exact arithmetic would do, and this test shows nothing");
}

#[test]
fn the_threshold_is_strict() {
    let dev = Device::cpu();
    let zeros = |n: usize| tensor(&dev, &[1, 1, n], &vec![0.0f32; n]);
    let at = |threshold: f32| {
        let (valid, sizes) = (tensor(&dev, &[1, 1], &[0]), tensor(&dev, &[1, 4], &[9.0f32; 4]));
        let probs = softmax(&zeros(4)).unwrap();
        let c = class_candidates(&probs, &zeros(4), &zeros(4), &valid, &sizes, STDS, threshold, None).unwrap();
        c.classes.i32s().iter().filter(|c| **c >= 0).count()
    };
    assert_eq!([at(0.25), at(0.25f32.next_down())], [0, 3]);
}

#[test]
fn numbers_that_are_no_probabilities_do_not_stop_the_program() {
    let (b, r, k) = (1, 2, 3);
    let run = |dev: &Device, threshold: f32| {
        let probs = tensor(dev, &[b, r, k + 1], &[f32::NAN, 9.0, 9.0, 0.0, 9.0, f32::INFINITY, 9.0, 0.0]);
        let deltas = tensor(dev, &[b, r, 4], &[f32::NAN; 8]);
        let rois = tensor(dev, &[b, r, 4], &[f32::INFINITY; 8]);
        let (valid, sizes) = (tensor(dev, &[b, r], &[0, 1]), tensor(dev, &[b, 4], &[10.0f32; 4]));
        class_candidates(&probs, &deltas, &rois, &valid, &sizes, STDS, threshold, None)
    };
    let out = everywhere(|dev| {
        let c = run(dev, 0.6)?;
        Ok(vec![c.boxes, c.scores, c.classes])
    });
    assert_eq!(out[2].i32s(), [1, 2], "one place a RoI: the first two pairs, a NaN never passes");
    assert!(run(&Device::cpu(), f32::NAN).is_err());
}

/// Every detection of mmdetection is one of the candidates that survive suppression.
#[test]
fn contains_mmdetections_faster_rcnn_detections() {
    let (inputs, f) = (Fixture::open("detectors/inputs"), Fixture::open("detectors/faster"));
    let meta = |b: usize, key: &str, i: usize| inputs.value("metas")[b][key][i].as_f64().unwrap() as f32;
    let sizes: Vec<f32> = (0..2).flat_map(|b| [meta(b, "img_shape", 0), meta(b, "img_shape", 1), 0.0, 0.0]).collect();
    let scale: Vec<f32> = (0..2).flat_map(|b| [meta(b, "scale_factor", 0), meta(b, "scale_factor", 1)]).collect();
    for rescale in [false, true] {
        let p = Problem {
            b: 2,
            r: 300,
            k: 80,
            groups: 80,
            logits: f.f32("eval.roi.cls_score"),
            deltas: f.f32("eval.roi.bbox_pred"),
            rois: f.f32("eval.roi.rois").chunks(5).flat_map(|r| r[1..].to_vec()).collect(),
            valid: vec![1; 600],
            sizes: sizes.clone(),
            threshold: 0.05,
            scale: rescale.then(|| scale.clone()),
        };
        let (_, boxes, scores, classes) = p.run();
        for b in 0..2 {
            let key = |what: &str| format!("eval.det.rescale{}.{b}.{what}", u8::from(rescale));
            let (want, want_scores, want_classes) =
                (f.f32(&key("bboxes")), f.f32(&key("scores")), f.i32(&key("labels")));
            assert!(!want_classes.is_empty());
            for (i, &class) in want_classes.iter().enumerate() {
                let near = |x: &[f32], y: &[f32], tol: f32| x.iter().zip(y).all(|(x, y)| (x - y).abs() <= tol);
                let found = (b * p.n()..(b + 1) * p.n()).any(|j| {
                    classes[j] == class
                        && near(&scores[j..=j], &want_scores[i..=i], 1e-6)
                        && near(&boxes[4 * j..][..4], &want[4 * i..][..4], 1e-3)
                });
                assert!(found, "{}: detection {i} is no candidate", key(""));
            }
        }
    }
}

#[test]
fn detections_are_the_kept_candidates() {
    let (rows, scores) = (boxes(1, 6, 50.0), uniform(2, 6, 0.0, 1.0));
    let out = everywhere(|dev| {
        let c = Candidates {
            boxes: tensor(dev, &[2, 3, 4], &rows),
            scores: tensor(dev, &[2, 3], &scores),
            classes: tensor(dev, &[2, 3], &[5, 6, -1, 7, 8, 9]),
        };
        let (boxes, scores, classes) = detections(&c, &tensor(dev, &[2, 2], &[1, -1, 2, 0]))?;
        Ok(vec![boxes, scores, classes])
    });
    let row = |i: usize| rows[4 * i..][..4].to_vec();
    assert_eq!(out[0].f32s(), [row(1), vec![0.0; 4], row(5), row(3)].concat());
    assert_eq!(out[1].f32s(), [scores[1], 0.0, scores[5], scores[3]]);
    assert_eq!(out[2].i32s(), [6, -1, 9, 7]);
    assert_eq!(out[1].shape(), [2, 2]);
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let zeros = |shape: &[usize]| Tensor::zeros(&dev, shape, DType::F32).unwrap();
    let valid = tensor(&dev, &[2, 3], &[0; 6]);
    let message = |probs: &[usize], deltas: &[usize], sizes: &[usize]| {
        let (probs, deltas, rois) = (zeros(probs), zeros(deltas), zeros(&[2, 3, 4]));
        class_candidates(&probs, &deltas, &rois, &valid, &zeros(sizes), STDS, 0.05, None).unwrap_err().to_string()
    };
    assert!(message(&[2, 3, 0], &[2, 3, 4], &[2, 4]).starts_with("class_candidates: probs: want [B,R,K+1]"));
    assert!(message(&[2, 3, 6], &[2, 3, 16], &[2, 4]).starts_with("class_candidates: deltas: want [2, 3, 20]"));
    assert!(message(&[2, 3, 6], &[2, 3, 20], &[1, 4]).starts_with("class_candidates: sizes"));
}
