//! Matching of boxes with ground truth in every way of running it; values are tested in src/ops/match_boxes/tests.rs.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::match_boxes::{Matcher, match_boxes};
use upres::tensor::Tensor;

/// B, N, G.
const CASES: &[Case] = &[
    case("no_images", &[0, 5, 2]),
    case("no_boxes", &[2, 0, 3]),
    case("no_ground_truth", &[2, 7, 0]), // all negative
    case("one", &[1, 1, 1]),
    case("tail", &[3, 33, 5]),
    case("truths", &[2, 300, 600]), // more ground truths than boxes
    case("rpn", &[2, 12_495, 24]),  // several tasks an image
    case("rpn_448", &[1, 50_127, 100]),
];

fn run(device: &Device, case: &Case, low_quality: bool) -> Result<Vec<Tensor>> {
    let [b, n, g] = case.dims.try_into().unwrap();
    let (shared, own) =
        (tensor(device, &[n, 4], &boxes(1, n, 100.0)), tensor(device, &[b, n, 4], &boxes(1, b * n, 100.0)));
    let truth = tensor(device, &[b, g, 4], &boxes(2, b * g, 100.0));
    let count = tensor(device, &[b], &integers(3, b, 0, g as i32 + 1));
    let valid = tensor(device, &[b, n], &integers(4, b * n, 0, 2));
    let m = Matcher { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.3, low_quality };
    Ok(vec![match_boxes(&shared, Some(&valid), &truth, &count, m)?, match_boxes(&own, None, &truth, &count, m)?])
}

#[test]
fn is_the_same_everywhere() {
    for case in CASES {
        let [b, n, g]: [usize; 3] = case.dims.try_into().unwrap();
        for low_quality in [false, true] {
            let out = everywhere(|dev| run(dev, case, low_quality));
            let (count, valid) = (integers(3, b, 0, g as i32 + 1), integers(4, b * n, 0, 2));
            for (i, (with_valid, all)) in out[0].i32s().iter().zip(out[1].i32s()).enumerate() {
                let found = count[i / n];
                assert_eq!(*with_valid == -2, valid[i] == 0, "{}: box {i}", case.name);
                assert!((-1..=found).contains(&all) && (found > 0 || all == 0), "{}: box {i}: {all}", case.name);
            }
        }
    }
}

/// Boxes with few distinct coordinates, so that IoUs tie, and some invalid ones: NaN, infinite, inverted, empty.
fn crude(seed: u64, n: usize) -> Vec<f32> {
    let at = integers(seed, 4 * n, 0, 9);
    let mut rows: Vec<f32> =
        at.chunks(4).flat_map(|b| [b[0], b[1], b[0] + b[2], b[1] + b[3]]).map(|v| v as f32).collect();
    let odd = [[f32::NAN; 4], [f32::INFINITY; 4], [0.0, 0.0, f32::INFINITY, 5.0], [8.0, 8.0, 1.0, 1.0], [3.0; 4]];
    for (i, odd) in odd.iter().cycle().take(n / 10).enumerate() {
        rows[40 * i..][..4].copy_from_slice(odd);
    }
    rows[20..24].copy_from_slice(&[0.0, 1.0, f32::NAN, 4.0]);
    rows
}

/// Decisions that depend on ties, zeros and NaN. The results are integers and must equal the CPU's.
#[test]
fn ties_and_odd_boxes() {
    let (b, n, g) = (3, 1500, 300);
    let (boxes, truth, valid) = (crude(1, b * n), crude(2, b * g), integers(3, b * n, -1, 2));
    for (pos_iou, neg_iou, min_pos_iou, low_quality) in [
        (0.7, 0.3, 0.3, true),
        (0.5, 0.4, 0.0, true), // a ground truth that meets nothing takes all
        (0.5, 0.5, 0.5, false),
        (0.0, 0.0, 1.0, true), // every box is positive
        (f32::NAN, 2.0, f32::NAN, true),
    ] {
        let m = Matcher { pos_iou, neg_iou, min_pos_iou, low_quality };
        // Few ground truths, so that not everything overlaps something, and a count larger than the number of slots.
        for counts in [[300, -5, 7], [400, 1, 0]] {
            let out = everywhere(|dev| {
                let (all, truth) = (tensor(dev, &[b, n, 4], &boxes), tensor(dev, &[b, g, 4], &truth));
                let (count, valid) = (tensor(dev, &[b], &counts), tensor(dev, &[b, n], &valid));
                let shared = tensor(dev, &[n, 4], &boxes[..4 * n]);
                let bytes: Vec<u8> = (0..b * n).map(|i| (i % 3) as u8).collect();
                let bytes = tensor(dev, &[b, n], &bytes);
                Ok(vec![
                    match_boxes(&all, Some(&valid), &truth, &count, m)?,
                    match_boxes(&all, None, &truth, &count, m)?,
                    match_boxes(&shared, Some(&bytes), &truth, &count, m)?,
                ])
            });
            assert!(out[2].i32s().iter().enumerate().all(|(i, a)| (*a == -2) == (i % 3 == 0)));
        }
    }
}
