use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::match_boxes::{Matcher, match_boxes};
use upres::tensor::Tensor;

/// B, N, G. What is matched is tested beside the op, against the definition and mmdetection; here every way of running it.
const CASES: &[Case] = &[
    case("no_images", &[0, 5, 2]),
    case("no_boxes", &[2, 0, 3]),
    case("no_ground_truth", &[2, 7, 0]), // all negative
    case("one", &[1, 1, 1]),
    case("tail", &[3, 33, 5]),
    case("rpn", &[2, 12_495, 24]), // several tasks an image
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
