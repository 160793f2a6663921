//! Mask targets of sampled RoIs from run lengths, against mmcv to the bit and mmdetection.

use super::{Case, case};
use crate::support::tensors::*;
use std::time::Instant;
use upres::device::Device;
use upres::ops::mask_targets::mask_targets;
use upres::tensor::{DType, Tensor};

/// The definition: mmcv's `roi_align` of a bitmap in f32 (aligned, adaptive, scale 1), statement by statement, and the
/// threshold.
fn mmcv(bits: &[bool], w: usize, (pad_h, pad_w): (usize, usize), roi: &[f32], size: usize) -> Vec<i32> {
    let clip = |v: f32, most: usize| v.clamp(0.0, most as f32);
    let (x0, y0) = (clip(roi[0], pad_w) - 0.5, clip(roi[1], pad_h) - 0.5);
    let (bin_w, bin_h) =
        (((clip(roi[2], pad_w) - 0.5) - x0) / size as f32, ((clip(roi[3], pad_h) - 0.5) - y0) / size as f32);
    let (grid_w, grid_h) = (bin_w.ceil() as usize, bin_h.ceil() as usize);
    let place = |start: f32, bin: f32, grid: usize, b: usize, i: usize, pixels: usize| {
        let v = (start + b as f32 * bin + (i as f32 + 0.5) * bin / grid as f32).max(0.0);
        let low = v as usize;
        if low >= pixels - 1 { (pixels - 1, pixels - 1, 0.0) } else { (low, low + 1, v - low as f32) }
    };
    let at = |y: usize, x: usize| f32::from(u8::from(bits[y * w + x]));
    let mut out = Vec::new();
    for i in 0..size {
        for j in 0..size {
            let mut sum = 0f32;
            for iy in 0..grid_h {
                let (y_low, y_high, ly) = place(y0, bin_h, grid_h, i, iy, pad_h);
                for ix in 0..grid_w {
                    let (x_low, x_high, lx) = place(x0, bin_w, grid_w, j, ix, pad_w);
                    let (hy, hx) = (1.0 - ly, 1.0 - lx);
                    sum += hy * hx * at(y_low, x_low)
                        + hy * lx * at(y_low, x_high)
                        + ly * hx * at(y_high, x_low)
                        + ly * lx * at(y_high, x_high);
                }
            }
            out.push((sum / (grid_h * grid_w).max(1) as f32 >= 0.5).into());
        }
    }
    out
}

/// B, P, G, height and width of the canvas, size.
const CASES: &[Case] = &[
    case("empty", &[0, 4, 2, 8, 8, 7]),
    case("no_box", &[2, 0, 3, 8, 9, 28]),
    case("no_object", &[2, 3, 0, 8, 9, 5]),
    case("one", &[1, 1, 1, 1, 1, 1]),
    case("tail", &[2, 33, 5, 37, 41, 5]),
    case("recipe", &[2, 24, 7, 96, 130, 28]),
    case("more_bins_than_lanes", &[1, 6, 3, 90, 70, 35]),
    case("many_samples_a_bin", &[1, 5, 4, 300, 250, 3]), // 10,000 terms in a sum
];

/// The objects of one image as bitmaps of the canvas.
struct Objects {
    h: usize,
    w: usize,
    bitmaps: Vec<Vec<bool>>,
}

impl Objects {
    /// Rectangles, discs, checkerboards, bands of whole rows, and noise, in turn.
    fn new(seed: u64, n: usize, h: usize, w: usize) -> Objects {
        let at = |g: usize, k: u64, most: usize| integers(seed + 10 * g as u64 + k, 1, 0, most as i32)[0] as usize;
        let one = |g: usize| {
            let (x0, y0, x1, y1) = (at(g, 0, w), at(g, 1, h), at(g, 2, w), at(g, 3, h));
            let noise = uniform(seed + g as u64, h * w, 0.0, 1.0);
            let (rx, ry) = ((w as f64 / 3.0).max(1.0), (h as f64 / 3.0).max(1.0));
            let set = |p: usize| {
                let (x, y) = (p % w, p / w);
                match g % 5 {
                    0 => (x0.min(x1)..=x0.max(x1)).contains(&x) && (y0.min(y1)..=y0.max(y1)).contains(&y),
                    1 => ((x as f64 - x0 as f64) / rx).powi(2) + ((y as f64 - y0 as f64) / ry).powi(2) < 1.0,
                    2 => (x + y) % 2 == 0, // half of each bin: every mean is near the threshold
                    3 => (y0.min(y1)..=y0.max(y1)).contains(&y),
                    _ => noise[p] < 0.5,
                }
            };
            (0..h * w).map(set).collect()
        };
        Objects { h, w, bitmaps: (0..n).map(one).collect() }
    }

    /// The run ends ("toggles") of each object. Runs that touch across the end of a row are joined if `join`.
    fn runs(&self, join: bool) -> Vec<Vec<i32>> {
        let one = |bits: &Vec<bool>| {
            let mut toggles: Vec<i32> = Vec::new();
            let mut push = |p: usize| match toggles.last() {
                Some(&last) if join && last == p as i32 => drop(toggles.pop()),
                _ => toggles.push(p as i32),
            };
            for y in 0..self.h {
                let row = &bits[y * self.w..][..self.w];
                for x in 0..self.w {
                    if row[x] && (x == 0 || !row[x - 1]) {
                        push(y * self.w + x);
                    }
                    if row[x] && (x + 1 == self.w || !row[x + 1]) {
                        push(y * self.w + x + 1);
                    }
                }
            }
            toggles
        };
        self.bitmaps.iter().map(one).collect()
    }
}

/// Packs the run ends of all images into `[B,S]` and `[B,G+1]`, for at most `g` objects per image.
fn packed(images: &[Vec<Vec<i32>>], g: usize) -> (Vec<i32>, usize, Vec<i32>) {
    let s = images.iter().map(|o| o.iter().map(Vec::len).sum::<usize>()).max().unwrap_or(0) + 3;
    let (mut runs, mut offsets) = (Vec::new(), Vec::new());
    for objects in images {
        let start = runs.len();
        for i in 0..=g {
            offsets.push((runs.len() - start) as i32);
            runs.extend(objects.get(i).into_iter().flatten());
        }
        runs.resize(start + s, i32::MAX);
    }
    (runs, s, offsets)
}

/// Boxes of all kinds: inside, beyond the canvas, on whole and half pixels, empty.
fn rois(seed: u64, n: usize, h: usize, w: usize) -> Vec<f32> {
    let u = uniform(seed, 4 * n, -0.15, 1.15);
    let one = |i: usize| {
        let (a, b, c, d) =
            (u[4 * i] * w as f32, u[4 * i + 1] * h as f32, u[4 * i + 2] * w as f32, u[4 * i + 3] * h as f32);
        let roi = [a.min(c), b.min(d), a.max(c), b.max(d)];
        match i % 4 {
            0 => roi,
            1 => roi.map(f32::round),
            2 => roi.map(|v| v.floor() + 0.5),
            _ => [0.0, 0.0, w as f32, h as f32 / (i + 1) as f32],
        }
    };
    (0..n).flat_map(one).collect()
}

#[test]
fn equals_mmcv_to_the_bit() {
    for c in CASES {
        let [b, p, g, h, w, size]: [usize; 6] = c.dims.try_into().unwrap();
        let objects: Vec<Objects> = (0..b).map(|i| Objects::new(77 * i as u64, g.saturating_sub(i), h, w)).collect();
        let gt = integers(5, b * p, -1, g as i32 + 1); // g itself is none
        let rois: Vec<f32> = (0..b).flat_map(|i| rois(6 + i as u64, p, h, w)).collect();
        // The second image is smaller than the canvas: its border pixels stand for everything outside.
        let pads: Vec<(usize, usize)> = (0..b).map(|i| (h - i * (h / 4), w - i * (w / 3))).collect();
        let sizes: Vec<f32> = pads.iter().flat_map(|&(h, w)| [1.0, 1.0, h as f32, w as f32]).collect();
        for join in [false, true] {
            let runs: Vec<Vec<Vec<i32>>> = objects.iter().map(|o| o.runs(join)).collect();
            let (runs, s, offsets) = packed(&runs, g);
            let out = everywhere(|dev| {
                let (rois, gt) = (tensor(dev, &[b, p, 4], &rois), tensor(dev, &[b, p], &gt));
                let (runs, offsets) = (tensor(dev, &[b, s], &runs), tensor(dev, &[b, g + 1], &offsets));
                Ok(vec![mask_targets(&rois, &gt, &runs, &offsets, &tensor(dev, &[b, 4], &sizes), w, size)?])
            });
            assert_eq!(out[0].shape(), [b, p, size, size]);
            let (got, area) = (out[0].i32s(), size * size);
            for r in 0..b * p {
                let got = &got[r * area..][..area];
                let (image, object) = (r / p, usize::try_from(gt[r]).unwrap_or(usize::MAX));
                if object >= g {
                    assert!(got.iter().all(|&t| t == -1), "{}: box {r} has no object", c.name);
                    continue;
                }
                let none = vec![false; h * w];
                let bits = objects[image].bitmaps.get(object).unwrap_or(&none);
                let want = mmcv(bits, w, pads[image], &rois[4 * r..][..4], size);
                let wrong = got.iter().zip(&want).filter(|(g, w)| g != w).count();
                assert_eq!(wrong, 0, "{}: box {r} {:?}, object {object}", c.name, &rois[4 * r..][..4]);
            }
        }
    }
}

/// Unpacks the bits of `np.packbits`.
fn unpacked(bytes: &[u8]) -> impl Iterator<Item = bool> {
    bytes.iter().flat_map(|byte| (0..8).rev().map(move |k| byte >> k & 1 == 1))
}

#[test]
fn equals_mmdetection() {
    let f = OpFixture::open("masks");
    let (h, w, n) = (160, 192, 8);
    let bits: Vec<bool> = unpacked(&f.u8("target.gt_masks_packed")).collect();
    let objects = Objects { h, w, bitmaps: bits.chunks(h * w).map(<[bool]>::to_vec).collect() };
    assert_eq!(objects.bitmaps.len(), 5);
    let (runs, s, offsets) = packed(&[objects.runs(false)], 5);
    let out = everywhere(|dev| {
        let rois = tensor(dev, &[1, n, 4], &f.f32("target.boxes"));
        let gt = tensor(dev, &[1, n], &f.i32("target.inds"));
        let (runs, offsets) = (tensor(dev, &[1, s], &runs), tensor(dev, &[1, 6], &offsets));
        let sizes = tensor(dev, &[1, 4], &[h as f32, w as f32, h as f32, w as f32]);
        Ok(vec![mask_targets(&rois, &gt, &runs, &offsets, &sizes, w, 28)?])
    });
    let bytes = f.u8("target.mask_target_packed");
    let want = unpacked(&bytes);
    let wrong = out[0].i32s().iter().zip(want).filter(|&(&got, want)| got != i32::from(want)).count();
    assert_eq!(wrong, 0);
}

/// NaN, inverted and empty boxes have no set pixel. Offsets beyond the runs are cut.
#[test]
fn bad_boxes_and_offsets() {
    let boxes = [
        [f32::NAN, 0.0, 8.0, 8.0],
        [6.0, 2.0, 2.0, 6.0],
        [3.0, 3.0, 3.0, 5.0],
        [9.0, 0.0, 12.0, 4.0],
        [0.0, 0.0, 8.0, 8.0],
    ];
    let out = everywhere(|dev| {
        let (rois, gt) = (tensor(dev, &[1, 5, 4], boxes.as_flattened()), tensor(dev, &[1, 5], &[0; 5]));
        let run = |offsets: &[i32]| {
            let (runs, offsets) = (tensor(dev, &[1, 2], &[0, 64]), tensor(dev, &[1, 2], offsets));
            mask_targets(&rois, &gt, &runs, &offsets, &tensor(dev, &[1, 4], &[8.0; 4]), 8, 4)
        };
        Ok(vec![run(&[0, 2])?, run(&[-3, 1000])?, run(&[5, 1])?])
    });
    for (out, full) in out.iter().zip([1, 1, 0]) {
        let want: Vec<i32> = (0..5 * 16).map(|i| if i / 16 == 4 { full } else { 0 }).collect();
        assert_eq!(out.i32s(), want);
    }
}

/// The run ends of a disc.
fn disc(x: f64, y: f64, radius: f64, h: usize, w: usize) -> Vec<i32> {
    let mut toggles = Vec::new();
    for row in 0..h {
        let half = (radius.powi(2) - (row as f64 + 0.5 - y).powi(2)).max(0.0).sqrt();
        let (from, to) = ((x - half).round().clamp(0.0, w as f64), (x + half).round().clamp(0.0, w as f64));
        if from < to {
            toggles.extend([from, to].map(|c| (row * w) as i32 + c as i32));
        }
    }
    toggles
}

/// Checks the memory that the doc comment states, and prints the time of 256 boxes.
#[test]
fn three_hundred_round_objects_are_less_than_two_megabytes() {
    let (h, w, g, p) = (800, 1333, 300, 256);
    let place = uniform(1, 2 * g, 0.0, 1.0);
    let centre = |i: usize| (f64::from(place[2 * i]) * w as f64, f64::from(place[2 * i + 1]) * h as f64);
    let largest: Vec<Vec<i32>> = (0..g).map(|_| disc(w as f64 / 2.0, h as f64 / 2.0, h as f64 / 2.0, h, w)).collect();
    let usual: Vec<Vec<i32>> = (0..g).map(|i| disc(centre(i).0, centre(i).1, 10.0 + i as f64 / 3.0, h, w)).collect();
    for (name, objects) in [("as high as the canvas", largest), ("of 20 to 220 pixels", usual)] {
        let (runs, s, offsets) = packed(&[objects], g);
        let bytes = 4 * (runs.len() + offsets.len());
        assert!(bytes < 2_000_000, "{bytes}");
        let dev = Device::cpu();
        let boxes: Vec<f32> = (0..p)
            .flat_map(|i| {
                let ((x, y), r) = (centre(i), 10.0 + i as f64 / 3.0);
                let large = [[w as f64 / 2.0 - 400.0, 0.0], [w as f64 / 2.0 + 400.0, h as f64]];
                let small = [[x - r, y - r], [x + r + 3.3, y + r - 2.7]];
                if s > 400_000 { large } else { small }.into_iter().flatten().map(|v| v as f32).collect::<Vec<_>>()
            })
            .collect();
        let gt: Vec<i32> = (0..p as i32).collect();
        let (rois, gt) = (tensor(&dev, &[1, p, 4], &boxes), tensor(&dev, &[1, p], &gt));
        let (runs, offsets) = (tensor(&dev, &[1, s], &runs), tensor(&dev, &[1, g + 1], &offsets));
        let sizes = tensor(&dev, &[1, 4], &[h as f32, w as f32, h as f32, w as f32]);
        let run = || mask_targets(&rois, &gt, &runs, &offsets, &sizes, w, 28).unwrap();
        run();
        let start = Instant::now();
        let target = run();
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let share = target.i32s().iter().sum::<i32>() as f64 / target.numel() as f64;
        println!("{g} objects {name}: {bytes} bytes; targets of {p} boxes: {ms:.1} ms, {share:.2} set");
        assert!((0.5..0.9).contains(&share), "a disc fills pi / 4 of its box: {share}");
    }
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let zeros = |shape: &[usize], dtype| Tensor::zeros(&dev, shape, dtype).unwrap();
    let (f, i) = (DType::F32, DType::I32);
    let run = |rois: &[usize], gt: &[usize], runs: &[usize], offsets: &[usize], sizes: &[usize], width_px| {
        let error = mask_targets(
            &zeros(rois, f),
            &zeros(gt, i),
            &zeros(runs, i),
            &zeros(offsets, i),
            &zeros(sizes, f),
            width_px,
            28,
        );
        error.map(drop).map_err(|e| e.to_string())
    };
    let (rois, gt, runs, offsets, sizes) = ([2, 3, 4], [2, 3], [2, 9], [2, 6], [2, 4]);
    assert_eq!(run(&rois, &gt, &runs, &offsets, &sizes, 8), Ok(()));
    assert!(run(&[2, 3, 5], &gt, &runs, &offsets, &sizes, 8).unwrap_err().starts_with("mask_targets: rois"));
    assert!(run(&rois, &[2, 4], &runs, &offsets, &sizes, 8).unwrap_err().starts_with("mask_targets: gt"));
    assert!(run(&rois, &gt, &[1, 9], &offsets, &sizes, 8).unwrap_err().starts_with("mask_targets: runs"));
    assert!(run(&rois, &gt, &runs, &[2, 0], &sizes, 8).unwrap_err().starts_with("mask_targets: offsets"));
    assert!(run(&rois, &gt, &runs, &offsets, &[2, 2], 8).unwrap_err().starts_with("mask_targets: sizes"));
    assert!(run(&rois, &gt, &runs, &offsets, &sizes, 0).unwrap_err().contains("width_px"));
}
