//! Candidates of (anchor, class) pairs, against the definition.

use super::box_decode;
use super::class_candidates::STDS;
use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::pair_candidates::{PairRule, pair_candidates};
use upres::tensor::{DType, Tensor};

/// One image: its logits `[R,K]`, the anchors of its rows, the anchors' deltas, its height and its scale.
struct Image<'a> {
    logits: &'a [f32],
    rows: Option<&'a [i32]>,
    deltas: &'a [f32],
    height: f32,
    scale: Option<&'a [f32]>,
}

/// Box, score and class of one pair of an image 120 pixels wide; zeros and -1 if the pair is no candidate.
fn naive(image: &Image<'_>, anchors: &[f32], k: usize, pair: i32, rule: PairRule) -> ([f64; 4], f64, i32) {
    let none = ([0.0; 4], 0.0, -1);
    let Some(&logit) = usize::try_from(pair).ok().and_then(|pair| image.logits.get(pair)) else { return none };
    let (row, class) = (pair as usize / k, pair as usize % k);
    let anchor = image.rows.map_or(row as i32, |rows| rows[row]);
    let prob = 1.0 / (1.0 + (-f64::from(logit)).exp());
    if !(0..anchors.len() as i32 / 4).contains(&anchor) || prob <= f64::from(rule.score_threshold) {
        return none;
    }
    let own = |of: &'_ [f32]| -> [f32; 4] { std::array::from_fn(|i| of[4 * anchor as usize + i]) };
    let y = box_decode::naive(&own(anchors), &own(image.deltas), rule.stds, (120.0, image.height));
    let y: [f64; 4] = std::array::from_fn(|i| y[i] / image.scale.map_or(1.0, |s| f64::from(s[i % 2])));
    if rule.min_size_px < 0.0 || (y[2] > y[0] && y[3] > y[1]) { (y, prob, class as i32) } else { none }
}

/// B, R, K, N, P; N = R: without rows.
const CASES: &[Case] = &[
    case("no_images", &[0, 3, 4, 9, 5]),
    case("no_pairs", &[2, 3, 4, 9, 0]),
    case("no_rows", &[2, 0, 4, 9, 3]),
    case("no_anchors", &[2, 3, 4, 0, 3]),
    case("one", &[1, 1, 1, 1, 1]),
    case("all_anchors", &[2, 40, 7, 40, 100]),
    case("chosen_anchors", &[3, 33, 7, 90, 77]),
    case("retinanet", &[2, 4000, 80, 4000, 4700]), // several tasks
];

#[test]
fn pairs_equal_the_definition() {
    for c in CASES {
        let [b, r, k, n, p] = c.dims.try_into().unwrap();
        let (logits, deltas) = (uniform(1, b * r * k, -6.0, 3.0), uniform(2, b * n * 4, -2.0, 2.0));
        let (anchors, pairs) = (boxes(3, n, 140.0), integers(4, b * p, -1, (r * k) as i32 + 1));
        let rows = (n != r).then(|| integers(5, b * r, -1, n as i32 + 1));
        let sizes: Vec<f32> = (0..b).flat_map(|i| [80.0 + i as f32, 120.0, 1e4, 1e4]).collect();
        for (score_threshold, min_size_px, scale) in [(0.05, -1.0, None), (0.3, 0.0, Some([0.5, 2.0].repeat(b)))] {
            let rule = PairRule { stds: STDS, score_threshold, min_size_px };
            let out = everywhere(|dev| {
                let rows = rows.as_ref().map(|rows| tensor(dev, &[b, r], rows));
                let scale = scale.as_ref().map(|s| tensor(dev, &[b, 2], s));
                let c = pair_candidates(
                    &tensor(dev, &[b, r, k], &logits),
                    &tensor(dev, &[b, p], &pairs),
                    rows.as_ref(),
                    &tensor(dev, &[n, 4], &anchors),
                    &tensor(dev, &[b, n, 4], &deltas),
                    &tensor(dev, &[b, 4], &sizes),
                    scale.as_ref(),
                    rule,
                )?;
                Ok(vec![c.boxes, c.scores, c.classes])
            });
            let (mut want_boxes, mut want_scores, mut want_classes) = (Vec::new(), Vec::new(), Vec::new());
            for (i, &pair) in pairs.iter().enumerate() {
                let at = i / p;
                let image = Image {
                    logits: &logits[at * r * k..][..r * k],
                    rows: rows.as_ref().map(|rows| &rows[at * r..][..r]),
                    deltas: &deltas[4 * at * n..][..4 * n],
                    height: sizes[4 * at],
                    scale: scale.as_ref().map(|s| &s[2 * at..][..2]),
                };
                let found = naive(&image, &anchors, k, pair, rule);
                want_boxes.extend(found.0);
                want_scores.push(found.1);
                want_classes.push(found.2);
            }
            assert_eq!(out[2].i32s(), want_classes, "{}", c.name);
            assert_close(c.name, &out[1].f32s(), &want_scores, 1e-7, 1e-6);
            assert_close(c.name, &out[0].f32s(), &want_boxes, 2e-4, 2e-5);
        }
    }
}

#[test]
fn pairs_that_are_no_numbers_are_no_candidates() {
    let out = everywhere(|dev| {
        let nan = f32::NAN;
        let logits = tensor(dev, &[1, 2, 2], &[nan, 200.0, f32::INFINITY, f32::NEG_INFINITY]);
        let (pairs, sizes) = (tensor(dev, &[1, 4], &[0, 1, 2, 3]), tensor(dev, &[1, 4], &[9.0f32; 4]));
        let anchors = tensor(dev, &[2, 4], &[0.0, 0.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0]);
        let deltas = tensor(dev, &[1, 2, 4], &[0.0f32; 8]);
        let rule = |min_size_px| PairRule { stds: STDS, score_threshold: 0.05, min_size_px };
        let run = |min| pair_candidates(&logits, &pairs, None, &anchors, &deltas, &sizes, None, rule(min));
        Ok(vec![run(-1.0)?.classes, run(0.0)?.classes])
    });
    assert_eq!(out[0].i32s(), [-1, 1, 0, -1], "without a least size an empty box is one");
    assert_eq!(out[1].i32s(), [-1, 1, -1, -1]);
}

#[test]
fn wrong_pairs_are_named() {
    let dev = Device::cpu();
    let zeros = |shape: &[usize]| Tensor::zeros(&dev, shape, DType::F32).unwrap();
    let pairs = tensor(&dev, &[2, 3], &[0; 6]);
    let message = |deltas: &[usize], anchors: &[usize], score_threshold: f32| {
        let rule = PairRule { stds: STDS, score_threshold, min_size_px: 0.0 };
        let (logits, deltas, anchors) = (zeros(&[2, 5, 4]), zeros(deltas), zeros(anchors));
        pair_candidates(&logits, &pairs, None, &anchors, &deltas, &zeros(&[2, 4]), None, rule).unwrap_err().to_string()
    };
    assert!(message(&[2, 6, 4], &[6, 4], 0.1).starts_with("pair_candidates: deltas: want [2, 5, 4]"));
    assert!(message(&[2, 5, 4], &[6, 4], 0.1).starts_with("pair_candidates: anchors: want [5, 4]"));
    assert!(message(&[2, 5, 4], &[5, 4], f32::NAN).starts_with("pair_candidates: PairRule"));
}
