use super::cpu::LevelShape;
use super::*;
use crate::device::Device;
use crate::ops::common::testing::{OpFixture, assert_close, boxes_around, uniform, wide};

/// One box on a map of 4×4 pixels by hand: stride 1, 2×2 bins, 2×2 samples a bin, aligned.
///
/// ```text
///      x 0    1    2    3    4     A pixel's value is that of its centre: "11" is the value at (1.5, 1.5).
///  y 0   +----+----+----+----+     The box goes from (1, 1) to (3, 3): each bin is one pixel.
///        |  0 |  1 |  2 |  3 |
///    1   +----#====#====#----+     aligned: half a pixel is taken off, so that centres have whole coordinates.
///        | 10 # 11 | 12 # 13 |       The box goes from 0.5 to 2.5, a bin is 2 / 2 = 1 wide, and samples are at
///    2   +----#----+----#----+       0.5 + 0.25 = 0.75 and 0.5 + 0.75 = 1.25 (first bin), 1.75 and 2.25 (second).
///        | 20 # 21 | 22 # 23 |     not aligned: nothing is taken off. The box goes from 1 to 3, samples are at
///    3   +----#====#====#----+       1.25 and 1.75, 2.25 and 2.75: half a pixel to the right of and below the picture.
///        | 30 | 31 | 32 | 33 |
///    4   +----+----+----+----+
/// ```
///
/// The first bin's sample (0.75, 0.75) lies between the pixels 0, 1, 10 and 11, with weights 0.25 and 0.75 on each
/// axis: `0.25·0.25·0 + 0.25·0.75·1 + 0.75·0.25·10 + 0.75·0.75·11 = 0 + 0.1875 + 1.875 + 6.1875 = 8.25`. The other
/// three are 8.75 (x = 1.25), 13.25 (y = 1.25) and 13.75 (both); the mean is `(8.25 + 8.75 + 13.25 + 13.75) / 4 = 11`.
/// The other bins are one pixel further: 12, 21 and 22. A box on whole pixels gives these pixels.
///
/// Not aligned the first bin is the mean of 13.75, 14.25, 18.75 and 19.25, which is 16.5; the others are 17.5, 26.5,
/// 27.5.
///
/// Gradient (aligned) of the first bin: on an axis the samples at 0.75 and 1.25 give pixels 0, 1 and 2 the weights
/// `0.25`, `0.75 + 0.75` and `0.25`, halved `1/8, 6/8, 1/8`; a pixel's weight is the product of those of its row and
/// its column. With a gradient of 64 for the bin, pixel 11 gets `64 · 6/8 · 6/8 = 36`.
#[test]
fn an_example_by_hand() {
    let x = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33].map(|v| v as f32).to_vec();
    let p = RoiAlign { sampling_ratio: 2, ..RoiAlign::new(2, 2) };
    let problem = |p| {
        let levels = vec![LevelShape { h: 4, w: 4, stride_px: 1.0 }];
        Problem { levels, n: 1, c: 1, rois: vec![1.0, 1.0, 3.0, 3.0], valid: vec![0], p }
    };
    for dev in devices() {
        let (y, dx) = problem(p).run(&dev, std::slice::from_ref(&x), &[64.0, 0.0, 0.0, 0.0]);
        assert_eq!(y, [11.0, 12.0, 21.0, 22.0]);
        #[rustfmt::skip]
        assert_eq!(dx[0], [
            1.0,  6.0, 1.0, 0.0,
            6.0, 36.0, 6.0, 0.0,
            1.0,  6.0, 1.0, 0.0,
            0.0,  0.0, 0.0, 0.0,
        ]);
        let (y, _) = problem(RoiAlign { aligned: false, ..p }).run(&dev, std::slice::from_ref(&x), &[0.0; 4]);
        assert_eq!(y, [16.5, 17.5, 26.5, 27.5]);
    }
}

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

/// Every device that computes.
fn devices() -> Vec<Device> {
    #[allow(unused_mut)]
    let mut devices = vec![Device::cpu()];
    #[cfg(feature = "sim")]
    devices.push(Device::sim(1));
    devices
}

/// Boxes `[N,S,4]`, some of them not valid.
struct Problem {
    levels: Vec<LevelShape>,
    n: usize,
    c: usize,
    rois: Vec<f32>,
    valid: Vec<i32>,
    p: RoiAlign,
}

impl Problem {
    fn sizes(&self) -> Vec<usize> {
        self.levels.iter().map(|l| self.n * l.h * l.w * self.c).collect()
    }

    fn per_image(&self) -> usize {
        self.valid.len() / self.n
    }

    /// y and the gradients of the levels for `dy`, through the tape.
    fn run(&self, dev: &Device, xs: &[Vec<f32>], dy: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut tape = Tape::new(dev);
        let (n, s, c, p) = (self.n, self.per_image(), self.c, self.p);
        let levels: Vec<Var> = (self.levels.iter().zip(xs))
            .map(|(l, x)| tape.leaf(Tensor::from_slice(dev, &[n, l.h, l.w, c], x).unwrap()))
            .collect();
        let rois = Tensor::from_slice(dev, &[n, s, 4], &self.rois).unwrap();
        let valid = Tensor::from_slice(dev, &[n, s], &self.valid).unwrap();
        let strides: Vec<f32> = self.levels.iter().map(|l| l.stride_px).collect();
        let refs: Vec<&Var> = levels.iter().collect();
        let y = roi_align(&mut tape, &refs, &strides, &rois, &valid, p).unwrap();
        let out = y.value().to_vec().unwrap();
        let dy = Tensor::from_slice(dev, y.shape(), dy).unwrap();
        let grads = tape.backward(vec![(y, dy)]).unwrap();
        (out, levels.iter().map(|x| grads.get(x).unwrap().to_vec().unwrap()).collect())
    }

    fn outputs(&self) -> usize {
        self.valid.len() * self.p.ph * self.p.pw * self.c
    }

    /// `visit(output element of channel 0, level, input element of channel 0, weight)` for each non-zero weight.
    fn each_weight(&self, mut visit: impl FnMut(usize, usize, usize, f64)) {
        for r in (0..self.valid.len()).filter(|&r| self.valid[r] >= 0) {
            let b = r / self.per_image();
            let roi = &self.rois[4 * r..4 * r + 4];
            let l = self.p.level(roi.try_into().unwrap(), self.levels.len());
            let level = &self.levels[l];
            for i in 0..self.p.ph {
                for j in 0..self.p.pw {
                    let out = ((r * self.p.ph + i) * self.p.pw + j) * self.c;
                    samples(roi, level, &self.p, i, j, |y, x, weight| {
                        visit(out, l, ((b * level.h + y) * level.w + x) * self.c, weight);
                    });
                }
            }
        }
    }

    fn check(&self, seed: u64) {
        let xs: Vec<Vec<f32>> =
            self.sizes().iter().enumerate().map(|(l, &s)| uniform(seed + l as u64, s, -1.0, 1.0)).collect();
        let ny = self.outputs();
        let dy = uniform(seed + 99, ny, -1.0, 1.0);
        let mut y = vec![0.0f64; ny];
        let mut dxs: Vec<Vec<f64>> = self.sizes().iter().map(|&s| vec![0.0; s]).collect();
        self.each_weight(|out, l, at, weight| {
            for k in 0..self.c {
                y[out + k] += weight * f64::from(xs[l][at + k]);
                dxs[l][at + k] += weight * f64::from(dy[out + k]);
            }
        });
        // Positions are f32 and up to the size of the map: a weight is good to about 1e-5.
        for dev in devices() {
            let (got_y, got_dxs) = self.run(&dev, &xs, &dy);
            assert_close("y", &got_y, &y, 5e-5, 1e-5);
            for (got, want) in got_dxs.iter().zip(&dxs) {
                assert_close("dx", got, want, 2e-4, 1e-4);
            }
        }
    }
}

fn pyramid(h: usize, w: usize, levels: usize) -> Vec<LevelShape> {
    (0..levels)
        .map(|l| LevelShape { h: h.div_ceil(4 << l), w: w.div_ceil(4 << l), stride_px: (4 << l) as f32 })
        .collect()
}

/// A map whose height is no multiple of the kernels' tiles: tall boxes of the next level begin where its last tile
/// would end.
#[test]
fn levels_do_not_meet() {
    for (h, w, finest, level, roi) in
        [(120, 161, 28.0, 1, [3.0, 2.0, 43.0, 118.0]), (800, 256, 56.0, 3, [0.0, 0.0, 255.0, 799.0])]
    {
        let p = RoiAlign { finest_scale_px: finest, ..RoiAlign::new(7, 7) };
        assert_eq!(p.level(roi, 4), level);
        Problem { levels: pyramid(h, w, 4), n: 1, c: 8, rois: roi.to_vec(), valid: vec![0], p }.check(6);
    }
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
        let rois = boxes_around(seed, 40, 150.0, 30.0);
        let valid = (0..40).map(|r| if r % 7 == 3 { -1 } else { r }).collect();
        let levels = pyramid(120, 161, 4);
        let p = RoiAlign { sampling_ratio, aligned, finest_scale_px: 28.0, ..RoiAlign::new(ph, pw) };
        let mut problem = Problem { levels, n, c, rois, valid, p };
        problem.check(seed);
        problem.p.gradient = RoiGradient::Atomic;
        problem.check(seed);
    }
}

#[test]
fn equals_mmcv() {
    let f = OpFixture::open("roi_align");
    let (x, _) = f.nhwc("x");
    // mmcv's boxes name their image; ours come by image: each image gets all of them, its own are valid.
    let rows = f.f32("rois");
    let boxes: Vec<f32> = rows.chunks(5).flat_map(|r| r[1..].to_vec()).collect();
    let image: Vec<usize> = rows.chunks(5).map(|r| r[0] as usize).collect();
    let valid: Vec<i32> = (0..24).map(|r| if image[r % 12] == r / 12 { 0 } else { -1 }).collect();
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
                        rois: [boxes.clone(), boxes.clone()].concat(),
                        valid: valid.clone(),
                        p: RoiAlign { sampling_ratio, aligned, ..RoiAlign::new(ph, pw) },
                    };
                    let (dy, _) = f.nhwc(&format!("gout.{ph}x{pw}"));
                    let row = ph * pw * 5;
                    for dev in devices() {
                        let (y, dx) = problem.run(&dev, std::slice::from_ref(&x), &[dy.clone(), dy.clone()].concat());
                        let own = (0..12).flat_map(|r| y[(image[r] * 12 + r) * row..][..row].to_vec());
                        assert_close(
                            &key,
                            &own.collect::<Vec<f32>>(),
                            &wide(&f.nhwc(&format!("{key}.y")).0),
                            3e-6,
                            1e-5,
                        );
                        assert_close(&key, &dx[0], &wide(&f.nhwc(&format!("{key}.dx")).0), 1e-5, 1e-5);
                    }
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
            let problem = Problem { levels: pyramid(60, 60, 2), n: 1, c: 3, rois: rois.clone(), valid: vec![0; 8], p };
            let xs: Vec<Vec<f32>> = problem.sizes().iter().map(|&s| vec![1.0; s]).collect();
            for dev in devices() {
                let (y, dx) = problem.run(&dev, &xs, &vec![1.0; problem.outputs()]);
                assert!(y.iter().all(|v| v.is_finite() && v.abs() <= 1.0001));
                assert!(dx.iter().flatten().all(|v| v.is_finite()));
            }
        }
    }
}

#[test]
fn empty_inputs() {
    let none = |n, c| Problem { levels: pyramid(20, 20, 2), n, c, rois: vec![], valid: vec![], p: RoiAlign::new(7, 7) };
    for dev in devices() {
        let (y, dx) = none(2, 3).run(&dev, &[vec![1.0; 150], vec![1.0; 54]], &[]);
        assert!(y.is_empty() && dx[0].len() == 150 && dx.iter().flatten().all(|&v| v == 0.0));
        let (y, _) = Problem { rois: vec![0.0; 8], valid: vec![0; 2], ..none(2, 0) }.run(&dev, &[vec![], vec![]], &[]);
        assert!(y.is_empty());
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let dev = Device::cpu();
    let mut tape = Tape::inference(&dev);
    let x = tape.constant(Tensor::zeros(&dev, &[2, 5, 5, 3], DType::F32).unwrap());
    let rois = Tensor::zeros(&dev, &[2, 6, 4], DType::F32).unwrap();
    let valid = Tensor::zeros(&dev, &[2, 6], DType::I32).unwrap();
    let five = Tensor::zeros(&dev, &[2, 6, 5], DType::F32).unwrap();
    let p = RoiAlign::new(7, 7);
    assert!(roi_align(&mut tape, &[&x], &[4.0], &rois, &valid, p).is_ok());
    let e = roi_align(&mut tape, &[&x], &[4.0], &five, &valid, p).unwrap_err().to_string();
    assert_eq!(e, "roi_align: rois: want [2, 6, 4], got [2, 6, 5]");
    assert!(roi_align(&mut tape, &[&x], &[4.0, 8.0], &rois, &valid, p).is_err());
    assert!(roi_align(&mut tape, &[], &[], &rois, &valid, p).is_err());
    assert!(roi_align(&mut tape, &[&x; 9], &[4.0; 9], &rois, &valid, p).is_err());
    assert!(roi_align(&mut tape, &[&x], &[4.0], &rois, &rois, p).is_err());
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
    let problem = Problem {
        levels: pyramid(120, 161, 3),
        n: 2,
        c: 33,
        rois: boxes_around(9, 60, 150.0, 10.0),
        valid: vec![0; 60],
        p: RoiAlign::new(7, 7),
    };
    let xs: Vec<Vec<f32>> = problem.sizes().iter().map(|&s| uniform(4, s, -1.0, 1.0)).collect();
    let dy = uniform(3, 60 * 49 * 33, -1.0, 1.0);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| problem.run(&Device::cpu(), &xs, &dy))
    };
    assert_eq!(run(1), run(3));
}
