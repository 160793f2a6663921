use super::*;
use crate::device::Device;
use crate::ops::common::testing::{OpFixture, boxes, boxes_around, uniform};

/// Six boxes by hand, threshold 0.5. All are 4 high (y from 0 to 4), except `b`, which is 3 high (y from 0 to 3).
///
/// ```text
///    x  0   1   2   3   4   5   6   7   8   score  group
///    a  [===============]                    0.90     0    kept: the best
///    b  [===============]                    0.85     0    removed by a: 4*3 / (16 + 12 - 12) = 12/16 = 0.75
///    c          [===============]            0.80     0    kept:         2*4 / (16 + 16 - 8)  =  8/24 = 0.33 with a
///    d              [===============]        0.70     0    removed by c: 3*4 / (16 + 16 - 12) = 12/20 = 0.60
///    e                  [===============]    0.60     0    kept: 8/24 = 0.33 with c; 0.60 with d, but d is gone
///    f  [===============]                    0.50     1    kept: a's place, but another group
/// ```
///
/// The input is in another order than the scores; the result names rows of the input, best first.
#[test]
fn an_example_by_hand() {
    let (a, b, c) = ([0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [2.0, 0.0, 6.0, 4.0]);
    let (d, e, f) = ([3.0, 0.0, 7.0, 4.0], [4.0, 0.0, 8.0, 4.0], a);
    let boxes = [e, a, d, b, c, f].concat();
    let keep = run(&boxes, &[0.6, 0.9, 0.7, 0.85, 0.8, 0.5], &[0, 0, 0, 0, 0, 1], Nms { groups: 2, ..P });
    assert_eq!(keep, [1, 4, 0, 5], "a, c, e, f");
    // In one group, `a` removes its copy: 16/16 = 1.
    assert_eq!(run(&boxes, &[0.6, 0.9, 0.7, 0.85, 0.8, 0.5], &[0; 6], P), [1, 4, 0], "a, c, e");
}

/// mmcv's loop as it stands, one comparison at a time, with a stable sort.
fn reference(b: &[f32], s: &[f32], group: &[i32], p: Nms) -> Vec<i32> {
    let mut order: Vec<usize> = (0..s.len()).filter(|&i| group[i] >= 0).collect();
    let max = order.iter().flat_map(|&i| &b[4 * i..4 * i + 4]).fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    order.sort_by(|&i, &j| s[j].total_cmp(&s[i]));
    let at = |i: usize| [0, 1, 2, 3].map(|k| b[4 * i + k] + if p.offset { group[i] as f32 * (max + 1.0) } else { 0.0 });
    let area = |b: [f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
    let mut keep: Vec<usize> = Vec::new();
    for i in order {
        let suppressed = keep.iter().any(|&k| {
            let (a, b) = (at(k), at(i));
            let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
            let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
            let iou = w * h / (area(a) + area(b) - w * h);
            (p.offset || group[k] == group[i]) && iou > p.iou_threshold
        });
        if !suppressed {
            keep.push(i);
        }
    }
    keep.iter().map(|&i| i as i32).take(p.max_out).collect()
}

const P: Nms = Nms { iou_threshold: 0.5, groups: 1, max_out: 0, offset: true };

/// One image on the CPU, and the same on the simulated device; the padding removed.
fn run(b: &[f32], s: &[f32], group: &[i32], p: Nms) -> Vec<i32> {
    let n = s.len();
    let p = Nms { max_out: if p.max_out == 0 { n } else { p.max_out }, ..p };
    let keep = batch(&[1, n], b, s, group, p);
    let used = keep.iter().position(|&k| k < 0).unwrap_or(keep.len());
    assert!(keep[used..].iter().all(|&k| k == -1));
    keep[..used].to_vec()
}

/// Images of one row of groups.
fn batch(shape: &[usize; 2], b: &[f32], s: &[f32], group: &[i32], p: Nms) -> Vec<i32> {
    let on = |dev: &Device| {
        let b = Tensor::from_slice(dev, &[shape[0], shape[1], 4], b).unwrap();
        let s = Tensor::from_slice(dev, shape, s).unwrap();
        nms(&b, &s, &Tensor::from_slice(dev, &shape[1..], group).unwrap(), p).unwrap().to_vec().unwrap()
    };
    let keep = on(&Device::cpu());
    #[cfg(feature = "sim")]
    assert!(on(&Device::sim(1)) == keep, "the simulated device");
    keep
}

#[test]
fn equals_mmcv() {
    let f = OpFixture::open("nms");
    let (b, s, tied, ids) = (f.f32("boxes"), f.f32("scores"), f.f32("scores_tied"), f.i32("ids"));
    let zeros = vec![0; s.len()];
    let groups = *ids.iter().max().unwrap() as usize + 1;
    for (name, iou_threshold) in [("0.3", 0.3), ("0.5", 0.5), ("0.7", 0.7)] {
        let (one, many) = (Nms { iou_threshold, ..P }, Nms { iou_threshold, groups, ..P });
        assert_eq!(run(&b, &s, &zeros, one), f.i32(&format!("nms.{name}.keep")));
        assert_eq!(run(&b, &tied, &zeros, one), f.i32(&format!("tied.nms.{name}.keep_stable")));
        assert_eq!(run(&b, &s, &ids, many), f.i32(&format!("batched.{name}.keep")));
        assert_eq!(run(&b, &tied, &ids, many), f.i32(&format!("tied.batched.{name}.keep_stable")));
    }
    assert_eq!(run(&b, &s, &zeros, P), f.i32("agnostic.0.5.keep"));
}

#[test]
fn an_iou_equal_to_the_threshold_survives() {
    let f = OpFixture::open("nms");
    assert_eq!(run(&f.f32("exact.boxes"), &f.f32("exact.scores"), &[0; 4], P), f.i32("exact.keep"));
    // IoU of exactly one half, and one ulp below as threshold.
    let b = [0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 2.0, 1.0];
    assert_eq!(run(&b, &[0.9, 0.8], &[0; 2], P), [0, 1]);
    assert_eq!(run(&b, &[0.9, 0.8], &[0; 2], Nms { iou_threshold: 0.5f32.next_down(), ..P }), [0]);
}

#[test]
fn split_path_of_mmcv() {
    let f = OpFixture::open("nms");
    let ids: Vec<i32> = f.u8("big.ids").iter().map(|&v| i32::from(v)).collect();
    let groups = *ids.iter().max().unwrap() as usize + 1;
    assert!(ids.len() >= SPLIT_FROM);
    let keep = run(&f.f32("big.boxes"), &f.f32("big.scores"), &ids, Nms { groups, ..P });
    assert_eq!(keep, f.i32("big.keep"));
}

#[test]
fn multiclass_nms_of_mmcv() {
    let f = OpFixture::open("nms");
    let (all, scores) = (f.f32("mc.boxes"), f.f32("mc.scores"));
    for (name, max_out) in [("mc", 30), ("mc_agn", 200)] {
        // (row, class) pairs above 0.05 in order; the last of five columns is the background. `mc_agn` has one box for
        // all classes of a row.
        let pairs: Vec<usize> = (0..240).filter(|i| scores[i / 4 * 5 + i % 4] > 0.05).collect();
        let class: Vec<i32> = pairs.iter().map(|i| (i % 4) as i32).collect();
        let s: Vec<f32> = pairs.iter().map(|i| scores[i / 4 * 5 + i % 4]).collect();
        let of = |i: &usize| if name == "mc" { 4 * i } else { 16 * (i / 4) };
        let b: Vec<f32> = pairs.iter().flat_map(|i| all[of(i)..of(i) + 4].to_vec()).collect();
        let keep = run(&b, &s, &class, Nms { groups: 4, max_out, ..P });
        let got: Vec<i32> = keep.iter().map(|&k| pairs[k as usize] as i32).collect();
        assert_eq!(got, f.i32(&format!("{name}.inds")), "{name}");
    }
}

#[test]
fn equals_the_plain_loop() {
    for (seed, n, groups, margin, offset, max_out) in [
        (1, 0, 1, 0.0, true, 5),     // no boxes
        (2, 1, 1, 0.0, true, 1),     // one
        (3, 33, 1, 0.0, false, 33),  // a block and a tail
        (4, 700, 5, 0.0, true, 700), // groups apart
        (5, 700, 5, 40.0, true, 90), // negative coordinates: shifted groups may touch
        (6, 700, 80, 0.0, false, 100),
        (7, 600, 3, 20.0, false, 17),
    ] {
        let b = boxes_around(seed, n, 100.0, margin);
        let s: Vec<f32> = uniform(seed + 50, n, -1.0, 1.0).iter().map(|v| (v * 50.0).round() / 50.0 + 0.0).collect();
        let group: Vec<i32> = uniform(seed + 70, n, -1.0, groups as f32).iter().map(|v| v.floor() as i32).collect();
        for iou_threshold in [0.0, 0.3, 0.7, 1.0] {
            let p = Nms { iou_threshold, groups, max_out, offset };
            assert_eq!(run(&b, &s, &group, p), reference(&b, &s, &group, p), "case {seed}, threshold {iou_threshold}");
        }
    }
}

#[test]
fn images_do_not_meet_and_threads_do_not_matter() {
    let (images, n) = (3, 900);
    let b = boxes(1, images * n, 100.0);
    let s = uniform(2, images * n, 0.0, 1.0);
    let group: Vec<i32> = (0..n).map(|i| (i / 180) as i32).collect();
    let p = Nms { groups: 5, max_out: 300, ..P };
    let all = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| batch(&[images, n], &b, &s, &group, p))
    };
    assert_eq!(all(1), all(3));
    for (i, keep) in all(2).chunks(300).enumerate() {
        let alone = run(&b[i * n * 4..][..n * 4], &s[i * n..][..n], &group, p);
        assert_eq!(keep[..alone.len()], alone);
    }
}

#[test]
fn boxes_of_no_group_take_no_part_and_do_not_set_the_largest_coordinate() {
    let b = [0.0, 0.0, 10.0, 10.0, 5000.0, 5.0, 5000.0, 9.0, f32::NAN, 0.0, 9.0, 9.0, 0.0, 0.0, 10.0, 9.0];
    let p = Nms { groups: 2, ..P };
    assert_eq!(run(&b, &[0.5, 0.9, 0.8, 0.4], &[0, -1, 2, 1], p), [0, 3]);
    assert_eq!(run(&b, &[0.5, 0.9, 0.8, 0.4], &[0, -1, 2, 0], p), [0]);
}

#[test]
fn empty_and_nan_boxes_and_scores() {
    let point = [3.0f32, 3.0, 3.0, 3.0];
    // 0 / 0 suppresses nothing.
    assert_eq!(run(&[point, point].concat(), &[0.1, 0.2], &[0, 0], P), [1, 0]);
    let b = [[f32::NAN; 4], [0.0, 0.0, 1.0, 1.0], [f32::NEG_INFINITY, 0.0, f32::INFINITY, 1.0], [1.0, 1.0, 0.0, 0.0]]
        .concat();
    let keep = run(&b, &[f32::NAN, 0.5, f32::INFINITY, -0.5], &[0, 1, 1, 7], Nms { groups: 2, ..P });
    assert_eq!(keep, [2, 1, 0], "NaN scores come last, unknown groups not at all");
}

#[test]
fn bad_arguments_are_errors() {
    let dev = Device::cpu();
    let b = Tensor::zeros(&dev, &[0, 4, 4], DType::F32).unwrap();
    let (s, g) = (Tensor::zeros(&dev, &[0, 4], DType::F32).unwrap(), Tensor::zeros(&dev, &[0, 4], DType::I32).unwrap());
    let p = Nms { max_out: 3, ..P };
    assert_eq!(nms(&b, &s, &g, p).unwrap().shape(), [0, 3]);
    assert!(nms(&b, &s, &g, Nms { iou_threshold: f32::NAN, ..p }).is_err());
    assert!(nms(&b, &s, &g, Nms { groups: 0, ..p }).is_err());
    assert!(nms(&b, &s, &s, p).is_err());
    assert!(nms(&b, &b, &g, p).is_err());
}

/// Areas and unions that are denormal, tiny, huge or infinite.
#[test]
fn sizes_near_the_ends_of_f32() {
    for scale in [1e-23, 1e-21, 1e-19, 1e-18, 1.0, 1e17, 1e18, 1e30] {
        let b: Vec<f32> = boxes(8, 200, 100.0).iter().map(|v| v * scale).collect();
        let s = uniform(9, 200, 0.0, 1.0);
        for iou_threshold in [0.0, 1e-6, 0.5, 0.9] {
            let p = Nms { iou_threshold, max_out: 200, offset: false, ..P };
            assert_eq!(
                run(&b, &s, &[0; 200], p),
                reference(&b, &s, &[0; 200], p),
                "{scale}, threshold {iou_threshold}"
            );
        }
    }
}
