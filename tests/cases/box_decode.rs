//! Boxes from deltas, cascade refinement and validity groups, against the definition and mmdetection.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::box_decode::box_decode;
use upres::ops::valid_groups::valid_groups;
use upres::tensor::Tensor;

/// The definition for one box. `size` is (w, h).
pub fn naive(p: &[f32], d: &[f32], stds: [f32; 4], size: (f32, f32)) -> [f64; 4] {
    let (p, d) = (wide(p), wide(d));
    let d: Vec<f64> = d.iter().zip(wide(&stds)).map(|(d, s)| d * s).collect();
    let limit = (1000.0f64 / 16.0).ln();
    let (pw, ph) = (p[2] - p[0], p[3] - p[1]);
    let (x, y) = (d[0] * pw + (p[0] + p[2]) / 2.0, d[1] * ph + (p[1] + p[3]) / 2.0);
    let (w, h) = (pw * d[2].clamp(-limit, limit).exp(), ph * d[3].clamp(-limit, limit).exp());
    let (iw, ih) = (f64::from(size.0), f64::from(size.1));
    [
        (x - w / 2.0).clamp(0.0, iw),
        (y - h / 2.0).clamp(0.0, ih),
        (x + w / 2.0).clamp(0.0, iw),
        (y + h / 2.0).clamp(0.0, ih),
    ]
}

/// B, N, K.
const CASES: &[Case] = &[
    case("no_images", &[0, 3, 2]),
    case("no_anchors", &[2, 0, 3]), // nothing to choose from
    case("nothing_chosen", &[2, 3, 0]),
    case("one", &[1, 1, 1]),
    case("tail", &[3, 33, 47]),
    case("tasks", &[2, 3000, 2500]), // several tasks, and the border between images inside one
    case("rpn", &[2, 50_127, 4_235]), // five levels of 3 anchors at 448, the 1000 best of each
];

/// The four standard deviations of mmdetection's heads.
pub const STDS: [(&str, [f32; 4]); 4] = [
    ("rpn", [1.0; 4]),
    ("s0", [0.1, 0.1, 0.2, 0.2]),
    ("s1", [0.05, 0.05, 0.1, 0.1]),
    ("s2", [0.033, 0.033, 0.067, 0.067]),
];

fn image_sizes(b: usize) -> Vec<f32> {
    (0..b).flat_map(|i| [80.0 + i as f32, 120.0 - i as f32, 1e4, 1e4]).collect()
}

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, n, k] = c.dims.try_into().unwrap();
        let (own, deltas) = (boxes(1, b * n, 100.0), uniform(2, 4 * b * n, -6.0, 6.0));
        let idx = integers(3, b * k, -1, n as i32 + 1);
        let sizes = image_sizes(b);
        let (_, stds) = STDS[1];
        let shared = &own[..(4 * n).min(own.len())];
        let shared = if b == 0 { boxes(1, n, 100.0) } else { shared.to_vec() };
        let out = everywhere(|dev| {
            let (own, shared) = (tensor(dev, &[b, n, 4], &own), tensor(dev, &[n, 4], &shared));
            let (deltas, sizes) = (tensor(dev, &[b, n, 4], &deltas), tensor(dev, &[b, 4], &sizes));
            let idx = tensor(dev, &[b, k], &idx);
            Ok(vec![
                box_decode(&own, &deltas, None, &sizes, stds)?,
                box_decode(&shared, &deltas, None, &sizes, stds)?,
                box_decode(&own, &deltas, Some(&idx), &sizes, stds)?,
                box_decode(&shared, &deltas, Some(&idx), &sizes, stds)?,
            ])
        });
        let size = |image: usize| (sizes[4 * image + 1], sizes[4 * image]);
        for (form, got) in out.iter().enumerate() {
            let (chosen, is_shared) = (form >= 2, form % 2 == 1);
            let rows = if chosen { k } else { n };
            assert_eq!(got.shape(), [b, rows, 4], "{}", c.name);
            let picks = if chosen { idx.clone() } else { (0..b * n).map(|r| (r % n) as i32).collect() };
            let mut want = Vec::new();
            for (r, &i) in picks.iter().enumerate() {
                let image = r / rows;
                if !(0..n as i32).contains(&i) {
                    want.extend([0.0; 4]);
                    continue;
                }
                let i = i as usize;
                let p = if is_shared { &shared[4 * i..][..4] } else { &own[4 * (image * n + i)..][..4] };
                want.extend(naive(p, &deltas[4 * (image * n + i)..][..4], stds, size(image)));
            }
            assert_close(c.name, &got.f32s(), &want, 1e-4, 1e-5);
        }
    }
}

#[test]
fn equals_mmdetection() {
    let f = OpFixture::open("bbox_coder");
    let (rois, deltas) = (f.f32("rois"), f.f32("deltas"));
    let n = rois.len() / 4;
    for (set, stds) in STDS {
        // Clipped to 118 x 150, and to a size that clips nothing but what lies left of or above 0.
        for (key, w, h) in [("decode_clip", 150.0, 118.0), ("decode_noclip", 1e9, 1e9)] {
            let out = everywhere(|dev| {
                let sizes = tensor(dev, &[1, 4], &[h, w, 0.0f32, 0.0]);
                let (rois, deltas) = (tensor(dev, &[n, 4], &rois), tensor(dev, &[1, n, 4], &deltas));
                Ok(vec![box_decode(&rois, &deltas, None, &sizes, stds)?])
            });
            let want: Vec<f64> = wide(&f.f32(&format!("{set}.{key}"))).iter().map(|v| v.max(0.0)).collect();
            // mmdetection's own f32: centre -/+ half a side of up to 62.5 times the RoI's.
            assert_close(&format!("{set}.{key}"), &out[0].f32s(), &want, 2e-4, 2e-6);
        }
    }
}

#[test]
fn the_logarithm_is_clamped_after_it_is_scaled() {
    let dev = Device::cpu();
    let sizes = tensor(&dev, &[1, 4], &[1e9f32; 4]);
    let anchors = tensor(&dev, &[1, 4], &[1000.0f32, 1000.0, 1016.0, 1016.0]);
    let side = |d: f32, stds| {
        let y = box_decode(&anchors, &tensor(&dev, &[1, 1, 4], &[0.0, 0.0, d, d]), None, &sizes, stds).unwrap();
        y.f32s()[2] - y.f32s()[0]
    };
    assert_close("beyond", &[side(100.0, [0.1, 0.1, 0.2, 0.2])], &[1000.0], 0.01, 0.0);
    assert_close("within", &[side(5.0, [0.1, 0.1, 0.2, 0.2])], &[16.0 * 1f64.exp()], 1e-3, 0.0);
    assert_close("small", &[side(-1e9, [1.0; 4])], &[16.0 * 0.016], 1e-3, 0.0);
}

#[test]
fn infinities_stay_inside_and_nan_is_not_hidden() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let deltas = [[inf, 0.0, inf, -inf], [nan, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, nan], [-f32::MAX; 4]].concat();
    let out = everywhere(|dev| {
        let anchors = tensor(dev, &[4, 4], &[10.0f32, 10.0, 20.0, 20.0].repeat(4));
        let (deltas, idx) = (tensor(dev, &[1, 4, 4], &deltas), tensor(dev, &[1, 4], &[0, 1, 2, 3]));
        let sizes = tensor(dev, &[1, 4], &[50.0f32, 60.0, 0.0, 0.0]);
        let y = box_decode(&anchors, &deltas, None, &sizes, [1.0; 4])?;
        let groups = valid_groups(&y, &idx, &[(4, 7)])?;
        // Image sizes that are NaN or infinite do not stop the program.
        let bad = tensor(dev, &[1, 4], &[nan, -5.0, 0.0, 0.0]);
        let of_bad = box_decode(&anchors, &deltas, None, &bad, [nan; 4])?;
        Ok(vec![y, groups, of_bad])
    });
    let y = out[0].f32s();
    assert!((y[0], y[2]) == (60.0, 60.0) && y[1] >= 14.9 && y[3] <= 15.1);
    assert!(y[4].is_nan() && y[6].is_nan() && y[9].is_nan() && y[11].is_nan());
    assert_eq!(y[12..], [0.0; 4]);
    assert_eq!(out[1].i32s(), [-1; 4]);
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let zeros = |shape: &[usize]| Tensor::zeros(&dev, shape, upres::tensor::DType::F32).unwrap();
    let message = |anchors: &[usize], deltas: &[usize], sizes: &[usize]| {
        box_decode(&zeros(anchors), &zeros(deltas), None, &zeros(sizes), [1.0; 4]).unwrap_err().to_string()
    };
    assert!(message(&[5, 4], &[2, 6, 4], &[2, 4]).starts_with("box_decode: anchors: want [6, 4]"));
    assert!(message(&[1, 6, 4], &[2, 6, 4], &[2, 4]).starts_with("box_decode: anchors: want [2, 6, 4]"));
    assert!(message(&[6, 4], &[2, 6, 5], &[2, 4]).starts_with("box_decode: deltas"));
    assert!(message(&[6, 4], &[2, 6, 4], &[2]).starts_with("box_decode: sizes"));
    let e = valid_groups(&zeros(&[1, 3, 4]), &tensor(&dev, &[1, 3], &[0; 3]), &[(2, 0)]).unwrap_err().to_string();
    assert!(e.starts_with("valid_groups: groups of 2 positions"), "{e}");
}
