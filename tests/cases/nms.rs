use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::nms::{Nms, nms};
use upres::tensor::Tensor;

/// B, N, groups, columns of the result. What is kept is tested beside the op, against mmcv; here every way of running it.
const CASES: &[Case] = &[
    case("no_images", &[0, 5, 1, 3]),
    case("no_boxes", &[2, 0, 1, 3]),
    case("nothing_wanted", &[2, 5, 1, 0]),
    case("one", &[1, 1, 1, 1]),
    case("tail", &[3, 77, 3, 100]), // fewer boxes than columns
    case("rpn", &[2, 2000, 5, 1000]),
];

fn run(device: &Device, case: &Case, offset: bool) -> Result<Vec<Tensor>> {
    let [b, n, groups, max_out] = case.dims.try_into().unwrap();
    let p = Nms { iou_threshold: 0.5, groups, max_out, offset };
    let (rois, scores) = (tensor(device, &[b, n, 4], &boxes(1, b * n, 100.0)), uniform(2, b * n, 0.0, 1.0));
    let group = tensor(device, &[b, n], &integers(3, b * n, -1, groups as i32));
    Ok(vec![nms(&rois, &tensor(device, &[b, n], &scores), &group, p)?])
}

#[test]
fn is_the_same_everywhere() {
    for case in CASES {
        let [b, n, groups, columns]: [usize; 4] = case.dims.try_into().unwrap();
        let (scores, group) = (uniform(2, b * n, 0.0, 1.0), integers(3, b * n, -1, groups as i32));
        for offset in [false, true] {
            let keep = everywhere(|dev| run(dev, case, offset)).remove(0);
            assert_eq!(keep.shape(), [b, columns]);
            for (image, keep) in keep.i32s().chunks(columns.max(1)).enumerate() {
                let used = keep.iter().position(|&k| k < 0).unwrap_or(keep.len());
                assert!(keep[used..].iter().all(|&k| k == -1), "{}: boxes behind the padding", case.name);
                let at = |k: i32| image * n + k as usize;
                assert!(keep[..used].iter().all(|&k| group[at(k)] >= 0), "{}: a box of no group", case.name);
                assert!(keep[..used].is_sorted_by(|&a, &b| scores[at(a)] >= scores[at(b)]), "{}: order", case.name);
            }
        }
    }
}
