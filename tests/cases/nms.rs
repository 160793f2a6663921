//! Non-maximum suppression in every way of running it; values are tested in src/ops/nms/tests.rs.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::nms::{Nms, nms};
use upres::tensor::Tensor;

/// B, N, groups, columns of the result, threshold in percent, pixels by which the boxes are moved to the left.
const CASES: &[Case] = &[
    case("no_images", &[0, 5, 1, 3, 50, 0]),
    case("no_boxes", &[2, 0, 1, 3, 50, 0]),
    case("nothing_wanted", &[2, 5, 1, 0, 50, 0]),
    case("one", &[1, 1, 1, 1, 50, 0]),
    case("tail", &[3, 77, 3, 100, 50, 0]),           // fewer boxes than columns
    case("left", &[2, 300, 4, 300, 30, 70]),         // negative coordinates: with offset, all groups are compared
    case("classes", &[2, 2100, 80, 100, 50, 0]),     // many small groups, two blocks that sort
    case("one_group", &[1, 4400, 1, 4400, 80, 0]),   // more than a mask's row holds, most of them kept
    case("few_of_many", &[1, 4400, 1, 200, 90, 0]),  // done before the end of the group
    case("left_many", &[1, 4400, 300, 4400, 95, 9]), // all groups compared, in several rounds
    case("rpn", &[2, 2000, 5, 1000, 50, 0]),
];

fn group_of(b: usize, n: usize, groups: usize) -> Vec<i32> {
    integers(3, b * n, if n > 4096 { 0 } else { -1 }, groups as i32) // some of no group
}

fn run(device: &Device, case: &Case, offset: bool) -> Result<Vec<Tensor>> {
    let [b, n, groups, max_out, percent, left] = case.dims.try_into().unwrap();
    let p = Nms { iou_threshold: percent as f32 / 100.0, groups, max_out, offset };
    let rois: Vec<f32> =
        boxes(1, b * n, 100.0).iter().enumerate().map(|(i, v)| v - [left as f32, 0.0][i % 2]).collect();
    let scores = tensor(device, &[b, n], &uniform(2, b * n, 0.0, 1.0));
    let group = tensor(device, &[b, n], &group_of(b, n, groups));
    Ok(vec![nms(&tensor(device, &[b, n, 4], &rois), &scores, &group, p)?])
}

#[test]
fn is_the_same_everywhere() {
    for case in CASES {
        let [b, n, groups, columns, ..] = case.dims else { unreachable!() };
        let (scores, group) = (uniform(2, b * n, 0.0, 1.0), group_of(*b, *n, *groups));
        for offset in [false, true] {
            let keep = everywhere(|dev| run(dev, case, offset)).remove(0);
            assert_eq!(keep.shape(), [*b, *columns]);
            for (image, keep) in keep.i32s().chunks((*columns).max(1)).enumerate() {
                let used = keep.iter().position(|&k| k < 0).unwrap_or(keep.len());
                assert!(keep[used..].iter().all(|&k| k == -1), "{}: boxes behind the padding", case.name);
                let at = |k: i32| image * n + k as usize;
                assert!(keep[..used].iter().all(|&k| group[at(k)] >= 0), "{}: a box of no group", case.name);
                assert!(keep[..used].is_sorted_by(|&a, &b| scores[at(a)] >= scores[at(b)]), "{}: order", case.name);
            }
        }
    }
}
