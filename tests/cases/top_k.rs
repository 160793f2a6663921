use super::{Case, case};
use crate::support::tensors::*;
use upres::ops::top_k::top_k;

/// B, then length and k of each segment.
const CASES: &[Case] = &[
    case("no_images", &[0, 5, 3]),
    case("no_segments", &[2]),
    case("no_scores", &[2, 0, 3]),
    case("nothing_wanted", &[2, 5, 0]),
    case("one", &[1, 1, 1]),
    case("short", &[3, 4, 7, 33, 5]), // a segment shorter than its k
    case("rpn", &[2, 9408, 2000, 2352, 2000, 588, 588, 147, 147]),
];

/// A few values only, so that ties are common: a stable sort is the definition.
#[test]
fn equals_a_stable_sort() {
    for case in CASES {
        let (b, pairs) = (case.dims[0], case.dims[1..].chunks(2));
        let mut segments = Vec::new();
        let mut n = 0;
        for pair in pairs {
            segments.push((n, pair[0], pair[1]));
            n += pair[0];
        }
        let scores: Vec<f32> = integers(1, b * n, -50, 50).iter().map(|&v| v as f32).collect();
        let out = everywhere(|dev| Ok(vec![top_k(&tensor(dev, &[b, n], &scores), &segments)?])).remove(0);
        let mut want = Vec::new();
        for row in scores.chunks(n.max(1)) {
            for &(start, len, k) in &segments {
                let mut order: Vec<usize> = (start..start + len).collect();
                order.sort_by(|&i, &j| row[j].total_cmp(&row[i]));
                want.extend((0..k).map(|i| order.get(i).map_or(-1, |&i| i as i32)));
            }
        }
        want.resize(if n == 0 { out.i32s().len() } else { want.len() }, -1);
        assert_eq!(out.i32s(), want, "{}", case.name);
    }
}
