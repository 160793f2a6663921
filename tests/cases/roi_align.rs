//! RoIAlign in every way of running it; values are tested in src/ops/roi_align/tests.rs.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::roi_align::{RoiAlign, RoiGradient, roi_align};
use upres::tape::Tape;
use upres::tensor::Tensor;

/// N, S, C, side of the finest level.
const CASES: &[Case] = &[
    case("no_images", &[0, 3, 4, 16]),
    case("no_boxes", &[2, 0, 4, 16]),
    case("no_channels", &[1, 2, 0, 16]),
    case("one", &[1, 1, 1, 4]),
    case("tail", &[2, 13, 33, 20]),
    case("box_head", &[2, 64, 64, 40]),
    case("crowd", &[2, 1100, 4, 12]), // more boxes on the same pixels than a backward block lists at once
    case("slices", &[1, 20, 260, 22]), // channels beyond the second slice of 128
    case("recipe", &[1, 128, 256, 112]), // a quarter of the recipe's boxes, less than half its map's side
];

/// PH, PW, samples per bin and axis, aligned.
const WAYS: &[Case] = &[
    case("one_bin", &[1, 1, 0, 1]),
    case("sparse", &[3, 5, 1, 1]), // one sample in a large bin: pixels between samples
    case("fixed", &[3, 5, 2, 0]),
    case("mask_head", &[14, 14, 0, 0]),
    case("many_bins", &[40, 33, 0, 1]), // tables of fewer than 32 boxes fit a block; many bins in one pixel
    case("a_column", &[50, 1, 3, 1]),
];

/// Pooling parameters for boxes with sides up to twice that of the finest level, in image pixels: both levels get some.
fn pooling(side: usize) -> RoiAlign {
    RoiAlign { finest_scale_px: 0.5 * side as f32, ..RoiAlign::new(7, 7) }
}

/// Two levels with these contents, and boxes on them.
struct Problem {
    n: usize,
    c: usize,
    side: usize,
    levels: [Vec<f32>; 2],
    rois: Vec<f32>,
    valid: Vec<i32>,
    p: RoiAlign,
}

impl Problem {
    fn of([n, s, c, side]: [usize; 4], p: RoiAlign) -> Problem {
        let level = |seed, side: usize| uniform(seed, n * side * side * c, -1.0, 1.0);
        let rois = boxes(3, n * s, 4.0 * side as f32);
        Problem { n, c, side, levels: [level(1, side), level(2, side / 2)], rois, valid: integers(4, n * s, -1, 3), p }
    }

    fn dy(&self) -> Vec<f32> {
        uniform(5, self.valid.len() * self.p.ph * self.p.pw * self.c, -1.0, 1.0)
    }

    /// Returns y, then the gradients of both levels; `make` makes the tensors.
    fn run_with(
        &self,
        device: &Device,
        dy: &[f32],
        make: impl Fn(&Device, &[usize], &[f32]) -> Tensor,
    ) -> Result<Vec<Tensor>> {
        let (n, c, side) = (self.n, self.c, self.side);
        let mut tape = Tape::new(device);
        let fine = tape.leaf(make(device, &[n, side, side, c], &self.levels[0]));
        let coarse = tape.leaf(make(device, &[n, side / 2, side / 2, c], &self.levels[1]));
        let s = self.valid.len().checked_div(n).unwrap_or(3);
        let (rois, valid) = (tensor(device, &[n, s, 4], &self.rois), tensor(device, &[n, s], &self.valid));
        let y = roi_align(&mut tape, &[&fine, &coarse], &[4.0, 8.0], &rois, &valid, self.p)?;
        let mut out = vec![y.value().clone()];
        let dy = make(device, y.shape(), dy);
        let grads = tape.backward(vec![(y, dy)])?;
        out.extend([&fine, &coarse].map(|v| grads.get(v).expect("a gradient").clone()));
        Ok(out)
    }

    fn run(&self, device: &Device, dy: &[f32]) -> Result<Vec<Tensor>> {
        self.run_with(device, dy, tensor)
    }
}

/// Also checks that y is a linear function of the levels (`<dy, y> = <dx, x>`), and that rows that are not valid are 0.
#[test]
fn is_the_same_everywhere() {
    for case in CASES {
        let problem = Problem::of(case.dims.try_into().unwrap(), pooling(case.dims[3]));
        let dy = problem.dy();
        let out = everywhere(|dev| problem.run(dev, &dy));
        let y = out[0].f32s();
        for (row, valid) in y.chunks(49 * problem.c.max(1)).zip(&problem.valid) {
            assert!(*valid >= 0 || row.iter().all(|&v| v == 0.0), "{}: a row that is not valid", case.name);
        }
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let norm = |a: &[f32]| dot(a, a).sqrt();
        let back = dot(&out[1].f32s(), &problem.levels[0]) + dot(&out[2].f32s(), &problem.levels[1]);
        let (there, scale) = (dot(&dy, &y), norm(&dy) * norm(&y));
        assert!((there - back).abs() <= 1e-6 * scale, "{}: {there} and {back}", case.name);
    }
}

#[test]
fn every_way_is_the_same_everywhere() {
    for case in WAYS {
        let [ph, pw, sampling_ratio, aligned] = case.dims.try_into().unwrap();
        let p = RoiAlign { ph, pw, sampling_ratio, aligned: aligned == 1, ..pooling(24) };
        let problem = Problem::of([2, 70, 6, 24], p);
        let dy = problem.dy();
        everywhere(|dev| problem.run(dev, &dy));
    }
}

/// A NaN in a level reaches every bin that samples near it, and a NaN in dy every pixel near its samples, even with
/// weight 0. Senseless boxes give finite numbers, the same on every device.
#[test]
fn nan_and_boxes_without_sense_are_the_same_everywhere() {
    for (sampling_ratio, aligned) in [(0, true), (0, false), (2, true), (2, false)] {
        let p = RoiAlign { sampling_ratio, aligned, ..pooling(24) };
        let mut problem = Problem::of([1, 40, 5, 24], p);
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let odd = [
            [nan, 0.0, 10.0, 10.0],
            [0.0, 0.0, 10.0, nan],
            [0.0, 0.0, inf, 10.0],
            [-inf, 0.0, inf, 10.0],
            [-1e30, -1e30, 1e30, 1e30],
            [50.0, 50.0, 10.0, 10.0],
            [5.0, 5.0, 5.0, 5.0],
            [-40.0, -40.0, 300.0, 300.0],
            [-40.0, 20.0, -10.0, 60.0],
            [1e9, 1e9, 2e9, 2e9],
            [95.9, 95.9, 96.1, 120.0],
        ];
        for (to, from) in problem.rois.chunks_exact_mut(4).zip(&odd) {
            to.copy_from_slice(from);
        }
        problem.valid.fill(0);
        let mut dy = problem.dy();
        let out = everywhere(|dev| problem.run(dev, &dy));
        assert!(out.iter().all(|t| t.f32s().iter().all(|v| v.is_finite())));
        problem.levels[0][5 * (24 * 11 + 7) + 2] = nan;
        problem.levels[1][5 * (12 * 5 + 7) + 3] = nan;
        for r in odd.len()..40 {
            dy[5 * (49 * r + 17) + 1] = nan;
        }
        let out = everywhere(|dev| problem.run(dev, &dy));
        assert!(out.iter().all(|t| t.f32s().iter().any(|v| v.is_nan())));
    }
}

/// Boxes whose sides differ by one unit in the last place, around the side at which the second level begins.
#[test]
fn levels_begin_at_the_same_box_everywhere() {
    let mut problem = Problem::of([1, 41, 4, 24], pooling(24));
    for (k, roi) in problem.rois.chunks_exact_mut(4).enumerate() {
        roi.copy_from_slice(&[0.0, 0.0, f32::from_bits(24f32.to_bits() + k as u32 - 20), 24.0]);
    }
    problem.valid.fill(0);
    problem.levels[1].fill(9.0);
    let dy = problem.dy();
    let y = everywhere(|dev| problem.run(dev, &dy))[0].f32s();
    let coarse = y.chunks(49 * 4).filter(|row| row[0] > 2.0).count();
    assert!(coarse > 0 && coarse < 41, "{coarse} boxes on the second level");
}

#[test]
fn in_16_bits() {
    for gradient in [RoiGradient::Gather, RoiGradient::Atomic] {
        for c in [24, 33] {
            let problem = Problem::of([2, 60, c, 30], RoiAlign { gradient, ..pooling(30) });
            let dy = problem.dy();
            in_halves(1.0, |dev, halves| {
                problem.run_with(dev, &dy, |dev, shape, data| halves.tensor(dev, shape, data))
            });
        }
    }
}
