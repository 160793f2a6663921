//! Time of RoIAlign and NMS on the CPU: `cargo bench --bench detection -- [--json FILE]`.
use std::time::Instant;
use upres::ops::roi_align::{RoiAlign, cpu};
use upres::tensor::philox::{Purpose, Stream};
fn best(mut f: impl FnMut()) -> f64 {
    let mut b = f64::MAX;
    let t0 = Instant::now();
    let mut i = 0;
    while i < 5 || t0.elapsed().as_secs_f64() < 2.0 {
        let t = Instant::now();
        f();
        b = b.min(t.elapsed().as_secs_f64() * 1e3);
        i += 1;
    }
    b
}
fn main() {
    let (n, c, side) = (2usize, 256usize, 448usize);
    let levels: Vec<_> = [4, 8, 16, 32].iter().map(|&s| cpu::LevelShape { h: side / s, w: side / s, stride_px: s as f32 }).collect();
    let xs: Vec<Vec<f32>> = levels.iter().map(|l| vec![0.5; n * l.h * l.w * c]).collect();
    let mut rng = Stream::new(1, 0, 0, 0, Purpose::Test).rng();
    let r = 1024;
    let mut rois = vec![];
    let batch: Vec<i32> = (0..r).map(|i| (i / 512) as i32).collect();
    for _ in 0..r {
        let s = 8.0 * (rng.uniform() * (448f32 / 8.0).ln()).exp();
        let a = (rng.range(-0.7, 0.7)).exp().sqrt();
        let (w, h) = (s * a, s / a);
        let (cx, cy) = (rng.range(0.0, 448.0), rng.range(0.0, 448.0));
        rois.extend([cx - w / 2.0, cy - h / 2.0, cx + w / 2.0, cy + h / 2.0].map(|v| v.clamp(0.0, 448.0)));
    }
    for p in [7, 14] {
        let p = RoiAlign::new(p, p);
        let mut y = vec![0.0; r * p.ph * p.pw * c];
        let views: Vec<&[f32]> = xs.iter().map(|v| v.as_slice()).collect();
        let f = best(|| cpu::forward(&mut y, &views, &levels, &rois, &batch, n, c, &p));
        let mut dxs = xs.clone();
        let mut v: Vec<&mut [f32]> = dxs.iter_mut().map(|v| v.as_mut_slice()).collect();
        let b = best(|| cpu::backward(&mut v, &levels, &y, &rois, &batch, c, &p));
        println!("{}: fwd {f:.2} ms bwd {b:.2} ms", p.ph);
    }
}
