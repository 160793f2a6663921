use super::cpu::{LevelShape, backward, forward};
use super::*;
use crate::ops::testing::{Fixture, assert_close, boxes, uniform};

/// Sample by sample in f64, as the definition says; `add(offset, weight)` for each of the four neighbours.
fn samples(roi: &[f32], level: &LevelShape, p: &RoiAlign, i: usize, j: usize, mut add: impl FnMut(usize, usize, f64)) {
    let off = if p.aligned { 0.5 } else { 0.0 };
    let s = 1.0 / f64::from(level.stride_px);
    let at = |v: f32| f64::from(v) * s - off;
    let (x0, y0) = (at(roi[0]), at(roi[1]));
    let (mut rw, mut rh) = (at(roi[2]) - x0, at(roi[3]) - y0);
    if !p.aligned {
        (rw, rh) = (rw.max(1.0), rh.max(1.0));
    }
    let (bh, bw) = (rh / p.ph as f64, rw / p.pw as f64);
    let grid = |b: f64| if p.sampling_ratio > 0 { p.sampling_ratio as i64 } else { b.ceil() as i64 };
    let (gh, gw) = (grid(bh), grid(bw));
    let count = (gh * gw).max(1) as f64;
    for a in 0..gh {
        let y = y0 + i as f64 * bh + (a as f64 + 0.5) * bh / gh as f64;
        for b in 0..gw {
            let x = x0 + j as f64 * bw + (b as f64 + 0.5) * bw / gw as f64;
            if y < -1.0 || y > level.h as f64 || x < -1.0 || x > level.w as f64 {
                continue;
            }
            let axis = |v: f64, n: usize| {
                let v = v.max(0.0);
                let low = (v as usize).min(n - 1);
                let high = (low + 1).min(n - 1);
                (low, high, if low == high { 0.0 } else { v - low as f64 })
            };
            let ((yl, yh, fy), (xl, xh, fx)) = (axis(y, level.h), axis(x, level.w));
            add(yl, xl, (1.0 - fy) * (1.0 - fx) / count);
            add(yl, xh, (1.0 - fy) * fx / count);
            add(yh, xl, fy * (1.0 - fx) / count);
            add(yh, xh, fy * fx / count);
        }
    }
}

struct Problem {
    levels: Vec<LevelShape>,
    n: usize,
    c: usize,
    rois: Vec<f32>,
    batch: Vec<i32>,
    p: RoiAlign,
}

impl Problem {
    fn sizes(&self) -> Vec<usize> {
        self.levels.iter().map(|l| self.n * l.h * l.w * self.c).collect()
    }

    fn forward(&self, xs: &[Vec<f32>]) -> Vec<f32> {
        let xs: Vec<&[f32]> = xs.iter().map(Vec::as_slice).collect();
        let mut y = vec![f32::NAN; self.batch.len() * self.p.ph * self.p.pw * self.c];
        forward(&mut y, &xs, &self.levels, &self.rois, &self.batch, self.n, self.c, &self.p);
        y
    }

    fn backward(&self, dy: &[f32]) -> Vec<Vec<f32>> {
        let mut dxs: Vec<Vec<f32>> = self.sizes().iter().map(|&s| vec![f32::NAN; s]).collect();
        let mut views: Vec<&mut [f32]> = dxs.iter_mut().map(Vec::as_mut_slice).collect();
        backward(&mut views, &self.levels, dy, &self.rois, &self.batch, self.c, &self.p);
        dxs
    }

    /// `visit(output element of channel 0, level, input element of channel 0, weight)` for each non-zero weight.
    fn each_weight(&self, mut visit: impl FnMut(usize, usize, usize, f64)) {
        for (r, &b) in self.batch.iter().enumerate().filter(|(_, b)| **b >= 0) {
            let roi = &self.rois[4 * r..4 * r + 4];
            let l = self.p.level(roi.try_into().unwrap(), self.levels.len());
            let level = &self.levels[l];
            for i in 0..self.p.ph {
                for j in 0..self.p.pw {
                    let out = ((r * self.p.ph + i) * self.p.pw + j) * self.c;
                    samples(roi, level, &self.p, i, j, |y, x, weight| {
                        visit(out, l, ((b as usize * level.h + y) * level.w + x) * self.c, weight);
                    });
                }
            }
        }
    }

    fn check(&self, seed: u64) {
        let xs: Vec<Vec<f32>> = self.sizes().iter().enumerate().map(|(l, &s)| uniform(seed + l as u64, s, -1.0, 1.0)).collect();
        let ny = self.batch.len() * self.p.ph * self.p.pw * self.c;
        let dy = uniform(seed + 99, ny, -1.0, 1.0);
        let mut y = vec![0.0f64; ny];
        let mut dxs: Vec<Vec<f64>> = self.sizes().iter().map(|&s| vec![0.0; s]).collect();
        self.each_weight(|out, l, at, weight| {
            for k in 0..self.c {
                y[out + k] += weight * f64::from(xs[l][at + k]);
                dxs[l][at + k] += weight * f64::from(dy[out + k]);
            }
        });
        let as_f32 = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
        // Positions are f32 and up to the size of the map: a weight is good to about 1e-5.
        assert_close(&self.forward(&xs), &as_f32(&y), 5e-5, 1e-5);
        for (got, want) in self.backward(&dy).iter().zip(&dxs) {
            assert_close(got, &as_f32(want), 2e-4, 1e-4);
        }
    }
}

fn pyramid(h: usize, w: usize, levels: usize) -> Vec<LevelShape> {
    (0..levels)
        .map(|l| LevelShape { h: h.div_ceil(4 << l), w: w.div_ceil(4 << l), stride_px: (4 << l) as f32 })
        .collect()
}

#[test]
fn equals_the_definition_in_f64() {
    for (seed, c, ph, pw, sampling_ratio, aligned) in [
        (1, 5, 7, 7, 0, true),    // all scalar tail
        (2, 64, 7, 7, 0, true),   // one full block
        (3, 67, 3, 5, 2, true),   // block and tail, PH != PW
        (4, 8, 14, 14, 0, false), // more bins than pixels
        (5, 130, 1, 1, 3, false), // two blocks and a tail
    ] {
        let n = 2;
        let rois = boxes(seed, 40, 150.0, 30.0);
        let batch = (0..40).map(|r| if r % 7 == 3 { -1 } else { r % n }).collect();
        let p = RoiAlign { ph, pw, sampling_ratio, aligned, finest_scale_px: 28.0 };
        Problem { levels: pyramid(120, 161, 4), n: n as usize, c, rois, batch, p }.check(seed);
    }
}

#[test]
fn equals_mmcv() {
    let f = Fixture::ops("roi_align");
    let x = f.nhwc("x");
    let rows = f.f32s("rois");
    let rois: Vec<f32> = rows.chunks(5).flat_map(|r| r[1..].to_vec()).collect();
    let batch: Vec<i32> = rows.chunks(5).map(|r| r[0] as i32).collect();
    let mut cases = 0;
    for (scale, stride_px) in [("0.25", 4.0), ("0.125", 8.0)] {
        for (ph, pw) in [(7, 7), (14, 14), (3, 5)] {
            for sampling_ratio in [0, 2] {
                for aligned in [false, true] {
                    let key = format!("scale{scale}.out{ph}x{pw}.sr{sampling_ratio}.aligned{}", u8::from(aligned));
                    if !f.has(&format!("{key}.y")) {
                        continue;
                    }
                    cases += 1;
                    let problem = Problem {
                        levels: vec![LevelShape { h: 13, w: 17, stride_px }],
                        n: 2,
                        c: 5,
                        rois: rois.clone(),
                        batch: batch.clone(),
                        p: RoiAlign { ph, pw, sampling_ratio, aligned, finest_scale_px: 56.0 },
                    };
                    assert_close(&problem.forward(&[x.clone()]), &f.nhwc(&format!("{key}.y")), 3e-6, 1e-5);
                    let dx = problem.backward(&f.nhwc(&format!("gout.{ph}x{pw}")));
                    assert_close(&dx[0], &f.nhwc(&format!("{key}.dx")), 1e-5, 1e-5);
                }
            }
        }
    }
    assert_eq!(cases, 12);
}

#[test]
fn hostile_boxes_give_finite_numbers() {
    let rois: Vec<f32> = [
        [f32::NAN, 0.0, 10.0, 10.0],
        [0.0, 0.0, f32::INFINITY, 10.0],
        [f32::NEG_INFINITY, 0.0, f32::INFINITY, 10.0],
        [-1e30, -1e30, 1e30, 1e30],
        [0.0, 0.0, 1e9, 1e9],
        [50.0, 50.0, 10.0, 10.0],
        [5.0, 5.0, 5.0, 5.0],
        [1e9, 1e9, 2e9, 2e9],
    ]
    .concat();
    for sampling_ratio in [0, 2] {
        for aligned in [false, true] {
            let p = RoiAlign { sampling_ratio, aligned, ..RoiAlign::new(7, 7) };
            let batch = vec![0, 0, 0, 0, 0, 0, 0, 5];
            let problem = Problem { levels: pyramid(60, 60, 2), n: 1, c: 3, rois: rois.clone(), batch, p };
            let xs: Vec<Vec<f32>> = problem.sizes().iter().map(|&s| vec![1.0; s]).collect();
            let y = problem.forward(&xs);
            assert!(y.iter().all(|v| v.is_finite() && v.abs() <= 1.0001));
            assert!(y[7 * 147..].iter().all(|&v| v == 0.0), "an image that is not there");
            assert!(problem.backward(&y).iter().flatten().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn empty_inputs() {
    let none = |n, c, levels| Problem { levels, n, c, rois: vec![], batch: vec![], p: RoiAlign::new(7, 7) };
    assert!(none(2, 3, pyramid(20, 20, 2)).forward(&[vec![0.0; 150], vec![0.0; 54]]).is_empty());
    let dx = none(2, 3, pyramid(20, 20, 2)).backward(&[]);
    assert!(dx.iter().flatten().all(|&v| v == 0.0) && dx[0].len() == 150);
    none(0, 3, pyramid(20, 20, 2)).backward(&[]);
    none(2, 0, pyramid(20, 20, 2)).backward(&[]);
}

#[test]
fn level_rule_is_mmdetections() {
    let p = RoiAlign::new(7, 7);
    let level = |side: f32| p.level([0.0, 0.0, side, side], 4);
    assert_eq!([1.0, 55.9, 56.0, 111.9, 112.0, 223.9, 224.0, 448.0, 5000.0].map(level), [0, 0, 0, 0, 1, 1, 2, 3, 3]);
    assert_eq!(p.level([f32::NAN; 4], 4), 0);
    assert_eq!(p.level([0.0, 0.0, -5.0, 5.0], 4), 0);
}

#[test]
fn result_does_not_depend_on_threads() {
    let n = 2;
    let problem = Problem {
        levels: pyramid(120, 161, 3),
        n,
        c: 33,
        rois: boxes(9, 60, 150.0, 10.0),
        batch: (0..60).map(|r| r % 2).collect(),
        p: RoiAlign::new(7, 7),
    };
    let dy = uniform(3, 60 * 49 * 33, -1.0, 1.0);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| problem.backward(&dy))
    };
    assert_eq!(run(1), run(3));
}
