use super::*;
use crate::device::Device;
use crate::ops::testing::{Fixture, boxes, uniform};

const RPN: MatchBoxes = MatchBoxes { pos_iou: 0.7, neg_iou: 0.3, min_pos_iou: 0.3, low_quality: true };

/// One image.
fn run(b: &[f32], gt: &[f32], slots: usize, valid: Option<&[i32]>, p: MatchBoxes) -> Vec<i32> {
    let dev = Device::cpu();
    let count = gt.len() / 4;
    let mut padded = gt.to_vec();
    padded.resize(slots * 4, 50.0); // what lies in unused slots must not matter
    for (i, v) in padded[count * 4..].iter_mut().enumerate() {
        *v = [0.0, 0.0, 100.0, 100.0][i % 4];
    }
    let b = Tensor::from_slice(&dev, &[b.len() / 4, 4], b).unwrap();
    let gt = Tensor::from_slice(&dev, &[1, slots, 4], &padded).unwrap();
    let count = Tensor::from_slice(&dev, &[1], &[count as i32]).unwrap();
    let index = valid.map(|v| Tensor::from_slice(&dev, &[1, v.len()], v).unwrap());
    let valid = index.as_ref().map_or(Valid::All, Valid::Index);
    match_boxes(&b, &gt, &count, valid, p).unwrap().i32s().to_vec()
}

/// mmdetection's assigner over the whole matrix.
fn reference(b: &[f32], gt: &[f32], valid: &[bool], p: MatchBoxes) -> Vec<i32> {
    let iou = |a: &[f32], g: &[f32]| {
        let area = |b: &[f32]| (b[2] - b[0]) * (b[3] - b[1]);
        let inter = (a[2].min(g[2]) - a[0].max(g[0])).max(0.0) * (a[3].min(g[3]) - a[1].max(g[1])).max(0.0);
        inter / (area(g) + area(a) - inter).max(1e-6)
    };
    let matrix: Vec<Vec<f32>> = gt.chunks(4).map(|g| b.chunks(4).map(|a| iou(a, g)).collect()).collect();
    let mut out: Vec<i32> = (0..b.len() / 4)
        .map(|i| {
            let mut best = (0.0, 0);
            for (j, row) in matrix.iter().enumerate() {
                if row[i] > best.0 {
                    best = (row[i], j);
                }
            }
            match best.0 {
                _ if !valid[i] => -2,
                v if matrix.is_empty() || v < p.neg_iou => 0,
                v if v >= p.pos_iou => best.1 as i32 + 1,
                _ => -1,
            }
        })
        .collect();
    for (j, row) in matrix.iter().enumerate().filter(|_| p.low_quality) {
        let top = row.iter().zip(valid).filter(|(_, v)| **v).fold(0.0f32, |m, (&v, _)| m.max(v));
        for i in (0..out.len()).filter(|&i| valid[i] && top >= p.min_pos_iou && row[i] == top) {
            out[i] = j as i32 + 1;
        }
    }
    out
}

#[test]
fn equals_mmdetection() {
    let f = Fixture::ops("assigner");
    let (b, gt) = (f.f32s("priors"), f.f32s("gt"));
    for (name, pos_iou, neg_iou, min_pos_iou, low_quality) in [
        ("rpn", 0.7, 0.3, 0.3, true),
        ("rcnn", 0.5, 0.5, 0.5, false),
        ("rcnn_mask", 0.5, 0.5, 0.5, true),
        ("retina", 0.5, 0.4, 0.0, true),
        ("c2", 0.6, 0.6, 0.6, false),
    ] {
        let p = MatchBoxes { pos_iou, neg_iou, min_pos_iou, low_quality };
        for slots in [6, 9] {
            assert_eq!(run(&b, &gt, slots, None, p), f.i32s(&format!("{name}.gt_inds")), "{name}");
            assert_eq!(run(&b, &[], slots, None, p), f.i32s(&format!("{name}_nogt.gt_inds")), "{name} without gt");
        }
    }
}

#[test]
fn equals_the_whole_matrix() {
    for (seed, r, g, low_quality, min_pos_iou) in [
        (1, 1, 1, true, 0.0),
        (2, 63, 3, true, 0.3),
        (3, 65, 0, true, 0.3),
        (4, 1025, 7, true, 0.0), // a second chunk of one box
        (5, 3000, 40, true, 0.0),
        (6, 3000, 5, false, 0.0),
    ] {
        let (mut b, mut gt) = (boxes(seed, r, 100.0, 10.0), boxes(seed + 9, g, 60.0, 0.0));
        if g > 2 {
            gt.splice(0..4, [900.0, 900.0, 950.0, 950.0]); // meets no box
            let twin: [f32; 4] = gt[4..8].try_into().unwrap();
            gt[8..12].copy_from_slice(&twin); // ties
            b[..4].copy_from_slice(&twin);
        }
        let index: Vec<i32> = uniform(seed, r, -3.0, 10.0).iter().map(|v| v.floor() as i32).collect();
        let valid: Vec<bool> = index.iter().map(|&v| v >= 0).collect();
        let p = MatchBoxes { pos_iou: 0.5, neg_iou: 0.4, min_pos_iou, low_quality };
        assert_eq!(run(&b, &gt, g, Some(&index), p), reference(&b, &gt, &valid, p), "case {seed}");
        assert_eq!(run(&b, &gt, g, None, p), reference(&b, &gt, &vec![true; r], p), "case {seed}, all valid");
    }
}

#[test]
fn shared_boxes_anchors_and_threads() {
    use crate::detection::anchors::AnchorGenerator;
    let anchors = AnchorGenerator::rpn().all(160, 192);
    let r = anchors.len() / 4;
    let gt = boxes(3, 8, 90.0, 0.0);
    let sizes = [160.0, 192.0, 160.0, 192.0, 118.0, 150.0, 128.0, 160.0];
    let all = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let dev = Device::cpu();
            let t = |shape: &[usize], v: &[f32]| Tensor::from_slice(&dev, shape, v).unwrap();
            let count = Tensor::from_slice(&dev, &[2], &[4, 1]).unwrap();
            let sizes = t(&[2, 4], &sizes);
            let valid = Valid::Anchors { sizes: &sizes, border_px: Some(0.0) };
            let shared = match_boxes(&t(&[r, 4], &anchors), &t(&[2, 4, 4], &gt), &count, valid, RPN).unwrap();
            let twice = t(&[2, r, 4], &[anchors.clone(), anchors.clone()].concat());
            let each = match_boxes(&twice, &t(&[2, 4, 4], &gt), &count, valid, RPN).unwrap();
            assert_eq!(shared.i32s(), each.i32s());
            shared.i32s().to_vec()
        })
    };
    let got = all(1);
    assert_eq!(got, all(3));
    for (i, count) in [4, 1].into_iter().enumerate() {
        let part = |a: &[f32]| takes_part(a.try_into().unwrap(), &sizes[4 * i..4 * i + 4], Some(0.0));
        let valid: Vec<bool> = anchors.chunks(4).map(part).collect();
        assert_eq!(got[i * r..][..r], reference(&anchors, &gt[i * 16..][..count * 4], &valid, RPN));
    }
    assert!(got.iter().any(|&a| a > 0) && got.iter().any(|&a| a == -2));
}

#[test]
fn hostile_numbers_and_bad_arguments() {
    let b = [[f32::NAN, 0.0, 1.0, 1.0], [f32::NEG_INFINITY, 0.0, f32::INFINITY, 9.0], [5.0, 5.0, 5.0, 5.0]].concat();
    let p = MatchBoxes { min_pos_iou: 0.0, ..RPN };
    assert_eq!(run(&b, &[f32::NAN, 0.0, 5.0, 5.0], 1, None, p)[0], -2);
    assert_eq!(run(&[], &[], 0, None, p), [0i32; 0]);
    let dev = Device::cpu();
    let t = |shape: &[usize]| Tensor::zeros(&dev, shape, DType::F32).unwrap();
    let count = |n| Tensor::zeros(&dev, &[n], DType::I32).unwrap();
    assert_eq!(match_boxes(&t(&[3, 4]), &t(&[0, 2, 4]), &count(0), Valid::All, RPN).unwrap().shape(), [0, 3]);
    assert!(match_boxes(&t(&[3, 5]), &t(&[1, 2, 4]), &count(1), Valid::All, RPN).is_err());
    assert!(match_boxes(&t(&[3, 4]), &t(&[1, 2, 4]), &count(2), Valid::All, RPN).is_err());
    assert!(match_boxes(&t(&[3, 4]), &t(&[1, 2, 4]), &count(1), Valid::Index(&count(1)), RPN).is_err());
    let upside_down = MatchBoxes { neg_iou: 0.8, ..RPN };
    assert!(match_boxes(&t(&[3, 4]), &t(&[1, 2, 4]), &count(1), Valid::All, upside_down).is_err());
}
