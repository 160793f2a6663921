//! The k best of each segment, against a stable sort.

use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::top_k::top_k;

/// The definition: a stable sort, descending, NaN behind everything.
fn reference(scores: &[f32], b: usize, n: usize, segments: &[(usize, usize, usize)]) -> Vec<i32> {
    let mut want = Vec::new();
    for image in 0..b {
        let row = &scores[image * n..][..n];
        for &(start, len, k) in segments {
            let mut order: Vec<usize> = (start..start + len).collect();
            let rank = |i: usize| if row[i].is_nan() { (1, 0.0) } else { (0, -row[i]) };
            order.sort_by(|&i, &j| rank(i).partial_cmp(&rank(j)).expect("no NaN"));
            want.extend((0..k).map(|i| order.get(i).map_or(-1, |&i| i as i32)));
        }
    }
    want
}

/// B, then length and k of each segment.
const CASES: &[Case] = &[
    case("no_images", &[0, 5, 3]),
    case("no_segments", &[2]),
    case("no_scores", &[2, 0, 3]),
    case("nothing_wanted", &[2, 5, 0]),
    case("one", &[1, 1, 1]),
    case("short", &[3, 4, 7, 33, 5]), // a segment shorter than its k
    case("powers", &[1, 32, 32, 64, 64, 65, 1, 1024, 1023, 4096, 4095, 4097, 4096, 8192, 1, 8193, 31]),
    case("none_of_many", &[2, 5000, 0, 4999, 5001]), // long segments of which nothing or all is wanted
    case("more_than_fit", &[1, 9000, 5000]),         // winners that a GPU sorts outside its shared memory
    case(
        "many_segments",
        &[
            2, 7, 3, 5, 9, 0, 2, 4200, 3, 7, 7, 1, 1, 2, 1, 3, 1, 4, 1, 5, 1, 6, 1, 7, 1, 8, 1, 9, 1, 4300, 60, 1, 1,
            4400, 70, 2, 2,
        ],
    ), // more than one launch takes
    case("rpn", &[2, 9408, 2000, 2352, 2000, 588, 588, 147, 147]),
    case("p2", &[1, 66_800, 2000]), // the finest level of an image of 800x1333 pixels, an anchor a cell
];

fn check(name: &str, case: &Case, scores: impl Fn(usize) -> Vec<f32>) {
    let (b, pairs) = (case.dims[0], case.dims[1..].chunks(2));
    let mut segments = Vec::new();
    let mut n = 0;
    for pair in pairs {
        segments.push((n, pair[0], pair[1]));
        n += pair[0];
    }
    let scores = scores(b * n);
    let out = everywhere(|dev| Ok(vec![top_k(&tensor(dev, &[b, n], &scores), &segments)?])).remove(0);
    assert_eq!(out.i32s(), reference(&scores, b, n, &segments), "{}, {name}", case.name);
}

/// Inputs: a few distinct values (ties are common), all different, ranks that differ in the last bits only, one value,
/// NaN.
#[test]
fn equals_a_stable_sort() {
    for case in CASES {
        check("ties", case, |n| integers(1, n, -50, 50).iter().map(|&v| v as f32).collect());
        check("ascending", case, |n| (0..n).map(|i| i as f32).collect()); // each better than all before
        check("all different", case, |n| uniform(2, n, -3.0, 1.0));
        if case.name == "p2" {
            continue;
        }
        check("alike", case, |n| integers(3, n, 0, 4000).iter().map(|&v| 1.0 + v as f32 * f32::EPSILON).collect());
        check("one value", case, |n| vec![-4.6; n]);
        check("nan", case, |n| integers(4, n, 0, 3).iter().map(|&v| [f32::NAN, 0.0, -0.0][v as usize]).collect());
    }
}
