//! Convolution and linear kernels against naive f64 references, and as adjoints of each other.

use upres::ops::common::bias::bias_grad;
use upres::ops::common::relu_gradient::relu_mask;
use upres::ops::conv2d::cpu::{self, ConvShape};
use upres::ops::linear::cpu::{self as linear, LinearShape};

/// Normal deviates (Box-Muller on a xorshift generator).
fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = move || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((s >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..n).map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32).collect()
}

/// Calls `f(y index, x index, w index)` for every product of the convolution, before the loop over input channels.
fn products(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    for n in 0..s.n {
        for oh in 0..s.oh() {
            for ow in 0..s.ow() {
                for kh in 0..s.kh {
                    for kw in 0..s.kw {
                        let (h, w) =
                            ((oh * s.stride + kh).wrapping_sub(s.pad), (ow * s.stride + kw).wrapping_sub(s.pad));
                        if h >= s.h || w >= s.w {
                            continue;
                        }
                        let (y, x) = (((n * s.oh() + oh) * s.ow() + ow) * s.o, ((n * s.h + h) * s.w + w) * s.c);
                        for o in 0..s.o {
                            f(y + o, x, ((o * s.kh + kh) * s.kw + kw) * s.c);
                        }
                    }
                }
            }
        }
    }
}

/// Largest error relative to the largest value wanted; NaN fails.
fn worst(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0f64, |m, v| m.max(v.abs())).max(1e-30);
    got.iter().zip(want).fold(0f64, |m, (&g, &w)| {
        let e = (g as f64 - w).abs() / scale;
        if e.is_nan() { f64::INFINITY } else { m.max(e) }
    })
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

/// A workspace full of NaN: its contents on entry must not matter.
fn ws(n: usize) -> Vec<f32> {
    vec![f32::NAN; n]
}

struct Passes {
    y: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
}

fn run(s: &ConvShape, x: &[f32], w: &[f32], dy: &[f32]) -> Passes {
    let (mut y, mut dx, mut dw) = (vec![f32::NAN; s.y_len()], vec![f32::NAN; s.x_len()], vec![f32::NAN; s.w_len()]);
    cpu::forward(&mut y, x, w, None, false, &mut ws(cpu::forward_workspace(s)), s);
    cpu::backward_data(&mut dx, dy, w, &mut ws(cpu::backward_data_workspace(s)), s);
    cpu::backward_weights(&mut dw, false, x, dy, &mut ws(cpu::backward_weights_workspace(s)), s);
    Passes { y, dx, dw }
}

/// The three passes in f64.
fn reference(s: &ConvShape, x: &[f32], w: &[f32], dy: &[f32]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut y, mut dx, mut dw) = (vec![0f64; s.y_len()], vec![0f64; s.x_len()], vec![0f64; s.w_len()]);
    products(s, |i, j, k| {
        let d = dy[i] as f64;
        let (x, w) = (&x[j..j + s.c], &w[k..k + s.c]);
        y[i] += dot(x, w);
        dx[j..j + s.c].iter_mut().zip(w).for_each(|(v, &w)| *v += d * w as f64);
        dw[k..k + s.c].iter_mut().zip(x).for_each(|(v, &x)| *v += d * x as f64);
    });
    (y, dx, dw)
}

/// Errors of y, dx and dw on gaussian inputs.
fn errors(s: &ConvShape) -> (f64, f64, f64) {
    let (x, w, dy) = (gaussian(s.x_len(), 1), gaussian(s.w_len(), 2), gaussian(s.y_len(), 3));
    let p = run(s, &x, &w, &dy);
    let (y, dx, dw) = reference(s, &x, &w, &dy);
    (worst(&p.y, &y), worst(&p.dx, &dx), worst(&p.dw, &dw))
}

/// Checks all three passes against sums in f64, bias, ReLU and accumulation, and the adjoint identity.
fn check(s: &ConvShape, tol: f64) {
    let (x, w, dy) = (gaussian(s.x_len(), 1), gaussian(s.w_len(), 2), gaussian(s.y_len(), 3));
    let p = run(s, &x, &w, &dy);
    let (y, dx, dw) = reference(s, &x, &w, &dy);
    let errors = (worst(&p.y, &y), worst(&p.dx, &dx), worst(&p.dw, &dw));
    assert!(errors.0 <= tol && errors.1 <= tol && errors.2 <= tol, "{s:?}: y, dx, dw: {errors:?}");

    let bias = gaussian(s.o, 4);
    let mut got = vec![f32::NAN; s.y_len()];
    cpu::forward(&mut got, &x, &w, Some(&bias), true, &mut ws(cpu::forward_workspace(s)), s);
    let want: Vec<f64> = y.iter().enumerate().map(|(i, v)| (v + bias[i % s.o] as f64).max(0.0)).collect();
    assert!(worst(&got, &want) <= tol, "{s:?}: bias and relu");

    let start = gaussian(s.w_len(), 5);
    let mut got = start.clone();
    cpu::backward_weights(&mut got, true, &x, &dy, &mut ws(cpu::backward_weights_workspace(s)), s);
    let want: Vec<f64> = dw.iter().zip(&start).map(|(d, &s)| d + s as f64).collect();
    assert!(worst(&got, &want) <= tol, "{s:?}: accumulated dw");

    let (a, b, c) = (dot(&dy, &p.y), dot(&p.dx, &x), dot(&p.dw, &w));
    let scale = (dot(&dy, &dy) * dot(&p.y, &p.y)).sqrt().max(1e-30);
    assert!((a - b).abs() <= tol * scale && (a - c).abs() <= tol * scale, "{s:?}: adjoint: {a} {b} {c}");
}

#[allow(clippy::many_single_char_names)]
fn square(n: usize, h: usize, w: usize, c: usize, o: usize, k: usize, stride: usize, pad: usize) -> ConvShape {
    ConvShape { n, h, w, c, o, kh: k, kw: k, stride, pad }
}

#[test]
fn odd_shapes() {
    let channels = [1, 3, 5, 8, 17, 64];
    let sizes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 16, 19, 23];
    let mut i = 0;
    for k in [1, 3, 5, 7] {
        for stride in [1, 2] {
            for pad in [0, 1, 3] {
                for &h in &sizes {
                    // Every size meets every kernel; the other combinations are cycled through.
                    i += 1;
                    let w = sizes[(i * 7 + 3) % sizes.len()];
                    let (c, o) = (channels[i % 6], channels[(i / 6 + i) % 6]);
                    check(&square(1 + i % 2, h, w, c, o, k, stride, pad), 3e-6);
                }
            }
        }
    }
}

#[test]
fn kernels_that_are_not_square_and_larger_strides() {
    check(&ConvShape { n: 2, h: 9, w: 12, c: 5, o: 7, kh: 1, kw: 5, stride: 1, pad: 2 }, 3e-6);
    check(&ConvShape { n: 1, h: 13, w: 10, c: 20, o: 33, kh: 3, kw: 2, stride: 3, pad: 1 }, 3e-6);
    check(&ConvShape { n: 1, h: 16, w: 17, c: 3, o: 40, kh: 4, kw: 4, stride: 4, pad: 0 }, 3e-6);
}

/// Shapes like those of the detectors, so that every schedule is used, with more pixels and channels than one block.
#[test]
fn model_shapes() {
    check(&square(1, 40, 36, 3, 64, 7, 2, 3), 3e-6); // stem
    check(&square(2, 28, 28, 64, 256, 1, 1, 0), 3e-6); // many rows
    check(&square(1, 7, 7, 512, 1024, 1, 1, 0), 3e-6); // many columns
    check(&square(2, 14, 14, 256, 300, 1, 2, 0), 3e-6);
    check(&square(1, 30, 30, 72, 64, 3, 2, 1), 3e-6);
    check(&square(2, 12, 20, 256, 3, 1, 1, 0), 3e-6); // RPN scores
    check(&square(2, 12, 20, 256, 12, 1, 1, 0), 3e-6);
}

/// 3x3 convolutions of stride 1 on maps that Winograd tiles fit exactly and badly, in both schedules, with channel
/// counts around one vector, one panel and one packed row.
#[test]
fn three_by_three() {
    for (h, w, c, o, pad) in [
        (8, 8, 16, 16, 1),
        (13, 9, 20, 35, 1),
        (12, 16, 8, 64, 0),
        (10, 21, 64, 17, 2),
        (30, 45, 65, 70, 1),
        (7, 7, 40, 150, 1),
        (14, 14, 300, 130, 1),
        (7, 7, 513, 129, 1),
        (70, 66, 24, 16, 1),
    ] {
        check(&square(2, h, w, c, o, 3, 1, pad), 1e-5);
    }
}

/// The accuracy that docs/numerics.md states for Winograd's algorithm with 256 channels.
#[test]
fn winograd_accuracy() {
    for s in
        [square(1, 28, 28, 256, 48, 3, 1, 1), square(1, 48, 52, 48, 64, 3, 1, 1), square(1, 14, 14, 256, 256, 3, 1, 1)]
    {
        let (y, dx, dw) = errors(&s);
        println!("{s:?}: y {y:.1e}, dx {dx:.1e}, dw {dw:.1e}");
        assert!(y <= 5e-6 && dx <= 5e-6 && dw <= 5e-6, "{s:?}: y {y:.1e}, dx {dx:.1e}, dw {dw:.1e}");
    }
}

#[test]
fn empty_is_a_no_op() {
    for (c, o) in [(4, 6), (8, 8), (8, 130)] {
        let s = square(0, 8, 8, c, o, 3, 1, 1);
        let p = run(&s, &[], &gaussian(s.w_len(), 1), &[]);
        assert!(p.y.is_empty() && p.dx.is_empty() && p.dw.iter().all(|&v| v == 0.0));
        let mut dw = vec![2f32; s.w_len()];
        cpu::backward_weights(&mut dw, true, &[], &[], &mut [], &s);
        assert!(dw.iter().all(|&v| v == 2.0));
    }
    // The kernel is larger than the map: no output and no gradient. One case has the channels of Winograd's algorithm.
    for (h, w, c, o, k) in [(2, 2, 4, 6, 5), (2, 2, 8, 8, 3), (8, 2, 8, 8, 3), (2, 8, 8, 8, 3)] {
        let s = square(1, h, w, c, o, k, 1, 0);
        let p = run(&s, &gaussian(s.x_len(), 1), &gaussian(s.w_len(), 1), &[]);
        assert!(p.y.is_empty() && p.dx.iter().chain(&p.dw).all(|&v| v == 0.0), "{s:?}");
    }
}

#[test]
fn results_do_not_depend_on_the_thread_count() {
    for s in
        [square(2, 30, 26, 32, 48, 3, 1, 1), square(2, 14, 14, 256, 320, 3, 1, 1), square(2, 33, 20, 24, 40, 3, 2, 1)]
    {
        let (x, w, dy) = (gaussian(s.x_len(), 1), gaussian(s.w_len(), 2), gaussian(s.y_len(), 3));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let p = run(&s, &x, &w, &dy);
                let mut db = vec![0f32; s.o];
                bias_grad(&mut db, false, &dy);
                (p.y, p.dx, p.dw, db)
            })
        };
        assert!(with(1) == with(3), "{s:?}");
    }
}

#[test]
fn bias_gradient_and_relu_mask() {
    for (m, o) in [(0, 3), (1, 1), (257, 5), (5000, 70), (1000, 130)] {
        let dy = gaussian(m * o, 7);
        let mut want = vec![0f64; o];
        dy.iter().enumerate().for_each(|(i, &v)| want[i % o] += v as f64);
        let mut db = vec![f32::NAN; o];
        bias_grad(&mut db, false, &dy);
        assert!(worst(&db, &want) < 1e-5, "{m} {o}");
        bias_grad(&mut db, true, &dy);
        want.iter_mut().for_each(|v| *v *= 2.0);
        assert!(worst(&db, &want) < 1e-5, "{m} {o}: accumulated");
    }
    let mut dy = vec![1f32, 2.0, 3.0, 4.0];
    relu_mask(&mut dy, &[0.0, -1.0, 1e-30, f32::NAN]);
    assert_eq!(dy, [0.0, 0.0, 3.0, 4.0]); // NaN stops nothing
}

/// Shapes for the GEMM by rows, the GEMM by columns, and both schedules of Winograd, none of which may hide NaN in its
/// ReLU.
const NAN_SHAPES: [[usize; 7]; 5] = [
    [2, 9, 7, 5, 33, 3, 2],
    [1, 6, 5, 20, 19, 1, 1],
    [1, 3, 3, 1024, 520, 3, 2], // too large to pack as a whole
    [1, 16, 16, 24, 40, 3, 1],  // by tiles
    [1, 14, 14, 16, 130, 3, 1], // by channels
];

/// The gradient of the data is a convolution of dy and uses the same kernels.
#[test]
fn relu_lets_nan_through() {
    for [n, h, w, c, o, k, stride] in NAN_SHAPES {
        let s = square(n, h, w, c, o, k, stride, k / 2);
        let (mut x, weight, dy) = (gaussian(s.x_len(), 1), gaussian(s.w_len(), 2), gaussian(s.y_len(), 3));
        // Pixel (2, 2) of the first image is in the window of output pixel (2 / stride, 2 / stride).
        x[(2 * w + 2) * c + c / 2] = f32::NAN;
        let mut y = vec![0f32; s.y_len()];
        cpu::forward(&mut y, &x, &weight, None, true, &mut ws(cpu::forward_workspace(&s)), &s);
        let at = (2 / stride * s.ow() + 2 / stride) * o;
        assert!(y[at..at + o].iter().all(|v| v.is_nan()), "{s:?}: NaN of a pixel");
        // One channel with a NaN bias and one with NaN weights.
        x.fill(1.0);
        let mut bias = vec![-1e6f32; o];
        bias[o - 1] = f32::NAN;
        let mut poisoned = weight.clone();
        poisoned[s.k() + 1] = f32::NAN;
        cpu::forward(&mut y, &x, &poisoned, Some(&bias), true, &mut ws(cpu::forward_workspace(&s)), &s);
        for row in y.chunks_exact(o) {
            assert!(row[o - 1].is_nan(), "{s:?}: NaN of the bias");
            assert!(
                row.iter().enumerate().all(|(i, &v)| i == 1 || i == o - 1 || v == 0.0),
                "{s:?}: the others are cut"
            );
        }
        assert!(y[at + 1].is_nan(), "{s:?}: NaN of a weight");
        // NaN in dy reaches the gradient.
        let mut g = dy.clone();
        relu_mask(&mut g, &y);
        assert_eq!(g[at + 1], dy[at + 1], "{s:?}: a NaN in y does not stop the gradient");
    }
    // Without products y is the bias.
    let s = square(1, 2, 2, 0, 3, 1, 1, 0);
    let mut y = vec![0f32; s.y_len()];
    let bias = [1.0, -1.0, f32::NAN];
    cpu::forward(&mut y, &[], &[], Some(&bias), true, &mut ws(cpu::forward_workspace(&s)), &s);
    assert!(y.chunks_exact(3).all(|y| y[0] == 1.0 && y[1] == 0.0 && y[2].is_nan()));
}

#[test]
fn relu_of_linear_layers_lets_nan_through() {
    for (m, n, k) in [(1, 1, 1), (30, 64, 300), (5, 2000, 2500), (3, 7, 0)] {
        let s = LinearShape { m, n, k };
        let (mut x, w, mut bias) = (gaussian(m * k, 1), gaussian(n * k, 2), vec![-1e6f32; n]);
        bias[n - 1] = f32::NAN;
        let mut y = vec![0f32; m * n];
        linear::forward(&mut y, &x, &w, Some(&bias), true, &mut ws(linear::forward_workspace(&s)), &s);
        for row in y.chunks_exact(n) {
            assert!(row[n - 1].is_nan() && row[..n - 1].iter().all(|&v| v == 0.0), "{s:?}");
        }
        if k > 0 {
            x[k - 1] = f32::NAN;
            linear::forward(&mut y, &x, &w, None, true, &mut ws(linear::forward_workspace(&s)), &s);
            assert!(y[..n].iter().all(|v| v.is_nan()) && y[n..].iter().all(|v| !v.is_nan()), "{s:?}");
        }
    }
}

#[test]
fn linear_layers() {
    let shapes = [(0, 5, 7), (1, 1, 1), (3, 17, 5), (30, 64, 300), (100, 1030, 40), (513, 12, 256), (40, 2000, 2500)];
    for (m, n, k) in shapes {
        let s = LinearShape { m, n, k };
        let (x, w, dy, bias) = (gaussian(m * k, 1), gaussian(n * k, 2), gaussian(m * n, 3), gaussian(n, 4));
        let (mut y, mut dx, mut dw) = (vec![f32::NAN; m * n], vec![f32::NAN; m * k], vec![f32::NAN; n * k]);
        linear::forward(&mut y, &x, &w, Some(&bias), true, &mut ws(linear::forward_workspace(&s)), &s);
        linear::backward_data(&mut dx, &dy, &w, &mut ws(linear::backward_data_workspace(&s)), &s);
        linear::backward_weights(&mut dw, false, &x, &dy, &mut ws(linear::backward_weights_workspace(&s)), &s);
        // Only some elements of large products are checked.
        let step = (m * n * k / 20_000_000 + 1) | 1;
        let sum = |len: usize, f: &dyn Fn(usize) -> (f32, f32)| {
            (0..len).map(f).map(|(a, b)| a as f64 * b as f64).sum::<f64>()
        };
        let compare = |got: &[f32], want: &dyn Fn(usize) -> f64, what: &str| {
            let (g, w): (Vec<f32>, Vec<f64>) = (0..got.len()).step_by(step).map(|i| (got[i], want(i))).unzip();
            assert!(worst(&g, &w) <= 3e-6, "{s:?}: {what}: {}", worst(&g, &w));
        };
        compare(&y, &|i| (sum(k, &|q| (x[i / n * k + q], w[i % n * k + q])) + bias[i % n] as f64).max(0.0), "y");
        compare(&dx, &|i| sum(n, &|q| (dy[i / k * n + q], w[q * k + i % k])), "dx");
        compare(&dw, &|i| sum(m, &|q| (dy[q * n + i / k], x[q * k + i % k])), "dw");
        linear::backward_weights(&mut dw, true, &x, &dy, &mut ws(linear::backward_weights_workspace(&s)), &s);
        compare(&dw, &|i| 2.0 * sum(m, &|q| (dy[q * n + i / k], x[q * k + i % k])), "accumulated dw");
    }
}
