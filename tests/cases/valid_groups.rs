//! Groups of boxes, and which boxes are none, against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::valid_groups::valid_groups;

/// The group of one position.
fn naive(b: &[f32], idx: i32, group: i32) -> i32 {
    if idx >= 0 && b[2] - b[0] > 0.0 && b[3] - b[1] > 0.0 { group } else { -1 }
}

/// B, positions of each of three groups.
const CASES: &[Case] = &[
    case("no_image", &[0, 2, 1, 1]),
    case("one", &[1, 1, 0, 0]),
    case("tail", &[3, 11, 0, 37]),
    case("recipe", &[8, 1000, 1000, 784]), // several blocks
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, first, second, third] = c.dims.try_into().unwrap();
        let runs = [(first, 4), (second, 5), (third, 6)];
        let groups: Vec<i32> = runs.iter().flat_map(|&(len, group)| vec![group; len]).collect();
        let k = groups.len();
        let (rows, idx) = (uniform(1, 4 * b * k, 0.0, 9.0), integers(2, b * k, -1, 3));
        let out = everywhere(|dev| {
            Ok(vec![valid_groups(&tensor(dev, &[b, k, 4], &rows), &tensor(dev, &[b, k], &idx), &runs)?])
        });
        let want = (0..b * k).map(|i| naive(&rows[4 * i..][..4], idx[i], groups[i % k]));
        assert_eq!(out[0].i32s(), want.collect::<Vec<_>>(), "{}", c.name);
    }
}

#[test]
fn groups_follow_positions_and_drop_what_is_no_box() {
    let (a, thin, flat, turned, nan) =
        ([1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 2.0, 1.0], [2.0, 1.0, 1.0, 2.0], [f32::NAN; 4]);
    let rows = [a, a, a, thin, flat, a, a, turned, nan, a].concat();
    let out = everywhere(|dev| {
        let boxes = tensor(dev, &[2, 5, 4], &rows);
        Ok(vec![valid_groups(
            &boxes,
            &tensor(dev, &[2, 5], &[0, -1, 2, 3, 4, 0, 1, 2, 3, 4]),
            &[(2, 0), (0, 1), (3, 2)],
        )?])
    });
    assert_eq!(out[0].i32s(), [0, -1, 2, -1, -1, 0, 0, -1, -1, 2]);
    let dev = Device::cpu();
    for (shape, groups) in [([2, 0], &[][..]), ([0, 5], &[(5, 1)][..])] {
        let boxes = tensor::<f32>(&dev, &[shape[0], shape[1], 4], &[]);
        assert_eq!(valid_groups(&boxes, &tensor::<i32>(&dev, &shape, &[]), groups).unwrap().shape(), shape);
    }
}

/// More groups than one launch takes, some of them empty.
#[test]
fn groups_of_many_runs() {
    let runs: Vec<(usize, i32)> = (0..40).map(|i| (i * 7 % 5, 100 + i as i32)).collect();
    let k: usize = runs.iter().map(|r| r.0).sum();
    let (b, boxes) = (3, boxes(1, 3 * k, 50.0));
    let idx = integers(2, b * k, -1, 9);
    let out =
        everywhere(|dev| Ok(vec![valid_groups(&tensor(dev, &[b, k, 4], &boxes), &tensor(dev, &[b, k], &idx), &runs)?]));
    let groups: Vec<i32> = runs.iter().flat_map(|&(len, group)| vec![group; len]).collect();
    for (i, (got, idx)) in out[0].i32s().iter().zip(idx).enumerate() {
        assert_eq!(*got, if idx < 0 { -1 } else { groups[i % k] }, "position {i}");
    }
}
