//! Detections of dense heads: a chain of ops, compared with both versions of mmdetection that define it.

use super::box_encode::{image_sizes, retinanet_anchors};
use crate::support::fixtures::Fixture;
use crate::support::tensors::*;
use upres::detection::dense::{DenseConfig, Shortlist, dense_detections};
use upres::device::Device;

const RETINANET: DenseConfig = DenseConfig {
    nms_pre: 1000,
    shortlist: Shortlist::Pairs { min_size_px: 0.0 },
    score_threshold: 0.05,
    nms_iou: 0.5,
    max_detections: 100,
    stds: [1.0; 4],
};

/// Raw outputs `[2,N,80]` and `[2,N,4]`. Rows that the fixture leaves out are certain background.
fn outputs(f: &OpFixture) -> (Vec<f32>, Vec<f32>) {
    let n = f.shape("retina.labels")[1];
    let (mut logits, mut deltas) = (vec![-20.0; 2 * n * 80], vec![0.0; 2 * n * 4]);
    for (&i, v) in f.i32("retina.pairs").iter().zip(f.f32("retina.logits")) {
        logits[i as usize] = v;
    }
    for (&i, v) in f.i32("retina.rows").iter().zip(f.f32("retina.deltas").chunks(4)) {
        deltas[4 * i as usize..][..4].copy_from_slice(v);
    }
    (logits, deltas)
}

/// Boxes, scores and classes of two images.
fn detect(raw: &(Vec<f32>, Vec<f32>), rescale: bool, cfg: DenseConfig) -> (Vec<f32>, Vec<f32>, Vec<i32>) {
    let inputs = Fixture::open("detectors/inputs");
    let (sizes, n) = (image_sizes(&inputs), raw.1.len() / 8);
    let meta = |b: usize, i: usize| inputs.value("metas")[b]["scale_factor"][i].as_f64().unwrap() as f32;
    let run = |dev: &Device| {
        let (logits, deltas) = (tensor(dev, &[2, n, 80], &raw.0), tensor(dev, &[2, n, 4], &raw.1));
        let scale = rescale.then(|| tensor(dev, &[2, 2], &[meta(0, 0), meta(0, 1), meta(1, 0), meta(1, 1)]));
        let anchors = retinanet_anchors(dev)?;
        let (boxes, scores, classes) =
            dense_detections(&logits, &deltas, &anchors, &tensor(dev, &[2, 4], &sizes), scale.as_ref(), &cfg)?;
        Ok(vec![boxes, scores, classes])
    };
    // The simulated device takes a minute for lists of full length.
    let out = match cfg.nms_pre {
        ..=50 => everywhere(run),
        _ => run(&Device::cpu()).expect("detections").iter().map(Output::of).collect(),
    };
    assert_eq!(out[0].shape(), [2, cfg.max_detections, 4]);
    (out[0].f32s(), out[1].f32s(), out[2].i32s())
}

#[test]
fn equals_mmdetection_of_both_eras() {
    let f = OpFixture::open("dense");
    let raw = outputs(&f);
    let anchors = Shortlist::Anchors { max_pairs: 1500 };
    for (name, nms_pre, shortlist, rescale) in [
        ("det", 1000, RETINANET.shortlist, false),
        ("det", 1000, RETINANET.shortlist, true),
        ("det213", 1000, anchors, false),
        ("det_nmspre50", 50, RETINANET.shortlist, false),
        ("det213_nmspre50", 50, anchors, false),
    ] {
        let (boxes, scores, classes) = detect(&raw, rescale, DenseConfig { nms_pre, shortlist, ..RETINANET });
        for b in 0..2 {
            let key = |what: &str| format!("retina.{name}.rescale{}.{b}.{what}", u8::from(rescale));
            let want = f.i32(&key("labels"));
            let mut all = want.clone();
            all.resize(100, -1);
            assert_eq!(classes[100 * b..][..100], all, "{}", key(""));
            let (boxes, scores) = (&boxes[400 * b..][..4 * want.len()], &scores[100 * b..][..want.len()]);
            assert_close(&key("scores"), scores, &wide(&f.f32(&key("scores"))), 1e-6, 1e-6);
            assert_close(&key("bboxes"), boxes, &wide(&f.f32(&key("bboxes"))), 1e-4, 1e-6);
        }
    }
}

/// Cutting off pairs does not change the result as long as enough of the best ones survive.
#[test]
fn fewer_pairs_give_the_same_best() {
    let raw = outputs(&OpFixture::open("dense"));
    let with = |max_pairs| {
        let cfg = DenseConfig { shortlist: Shortlist::Anchors { max_pairs }, max_detections: 20, ..RETINANET };
        detect(&raw, false, cfg)
    };
    let all = with(usize::MAX);
    assert!(all.2.iter().all(|&c| c >= 0) && with(300) == all);
    let few = with(7);
    assert!(few.2[..20].iter().filter(|&&c| c >= 0).count() <= 7 && few.2[0] == all.2[0]);
}
