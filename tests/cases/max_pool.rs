//! Max pooling and its gradient, against the definition and torch.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::max_pool::max_pool;
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

/// The definition: in row-major order of the window the first of the largest wins.
fn naive(case: &Case, x: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let [n, h, w, c, k, stride, pad] = sizes(case);
    let windows = |cells: usize| if cells == 0 { 0 } else { (cells + 2 * pad + stride).saturating_sub(k) / stride };
    let (mut y, mut dx) = (Vec::new(), vec![0.0; x.len()]);
    for i in 0..n {
        for (oy, ox) in (0..windows(h)).flat_map(|oy| (0..windows(w)).map(move |ox| (oy, ox))) {
            for channel in 0..c {
                let window = (0..k * k)
                    .map(|t| ((oy * stride + t / k).wrapping_sub(pad), (ox * stride + t % k).wrapping_sub(pad)));
                let inside = window.filter(|&(iy, ix)| iy < h && ix < w);
                let at = inside.map(|(iy, ix)| ((i * h + iy) * w + ix) * c + channel);
                let best = at.reduce(|a, b| if x[b] > x[a] { b } else { a }).expect("a window has a pixel");
                dx[best] += dy[y.len()];
                y.push(x[best]);
            }
        }
    }
    (y, dx)
}

/// N, H, W, C, k, stride, pad.
const CASES: &[Case] = &[
    case("empty", &[0, 8, 8, 4, 3, 2, 1]),             // no image
    case("no_pixels", &[1, 0, 4, 3, 2, 1, 1]),         // an image without rows has no windows, padding or not
    case("too_small", &[1, 2, 2, 3, 3, 1, 0]),         // the window does not fit: no output, gradient 0
    case("one", &[1, 1, 1, 1, 1, 1, 0]),               // one pixel in one window
    case("one_padded", &[1, 1, 1, 3, 3, 2, 1]),        // one pixel, the rest of the window is padding
    case("tail", &[2, 9, 12, 19, 3, 2, 1]),            // odd sizes, channels that fill no vector
    case("gaps", &[1, 10, 11, 5, 2, 3, 0]),            // stride larger than the window: pixels that no window sees
    case("dense", &[1, 7, 6, 4, 3, 1, 1]),             // stride 1: every pixel in nine windows
    case("subsample", &[2, 7, 10, 33, 1, 2, 0]),       // k = 1: the pyramid's coarsest level from the one before
    case("largest_window", &[1, 20, 17, 2, 15, 2, 7]), // the place in the window needs all of a byte
    case("vectors", &[2, 13, 15, 40, 3, 2, 1]), // channels that are whole vectors, a row that ends inside a block
    case("even", &[1, 9, 9, 8, 2, 2, 1]),       // an even window; the last pixel is in none
    case("many_rows", &[1, 16_400, 1, 1, 3, 1, 1]), // more rows than a launch has blocks along y
    case("stem", &[2, 224, 224, 64, 3, 2, 1]),  // R50's stem at 448
];

fn sizes(case: &Case) -> [usize; 7] {
    case.dims.try_into().unwrap()
}

/// Only three distinct values, so that most windows hold ties.
fn input(n: usize) -> Vec<f32> {
    uniform(1, n, -1.5, 1.5).iter().map(|v| v.round()).collect()
}

/// y, dx.
fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let [n, h, w, c, k, stride, pad] = sizes(case);
    let x = input(n * h * w * c);
    pool(device, [n, h, w, c], &x, [k, stride, pad], |n| uniform(2, n, -1.0, 1.0))
}

fn pool(
    device: &Device,
    shape: [usize; 4],
    x: &[f32],
    [k, stride, pad]: [usize; 3],
    dy: impl Fn(usize) -> Vec<f32>,
) -> Result<Vec<Tensor>> {
    let mut tape = Tape::new(device);
    let x = tape.leaf(Tensor::from_slice(device, &shape, x)?);
    let y = max_pool(&mut tape, &x, k, stride, pad)?;
    let dy = Tensor::from_slice(device, y.shape(), &dy(y.value().numel()))?;
    let value = y.value().clone();
    let dx = tape.backward(vec![(y, dy)])?.get(&x).expect("dx").clone();
    Ok(vec![value, dx])
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let out = everywhere(|dev| run(dev, case));
        let [n, h, w, c, ..] = sizes(case);
        let x = input(n * h * w * c);
        let (y, dx) = naive(case, &x, &uniform(2, out[0].f32s().len(), -1.0, 1.0));
        assert!(out[0].f32s() == y, "{}: y", case.name);
        // At most nine terms a pixel, added in another order.
        for (i, (got, want)) in out[1].f32s().iter().zip(&dx).enumerate() {
            assert!((got - want).abs() <= 1e-5, "{}: dx {i}: got {got}, want {want}", case.name);
        }
    }
}

#[test]
fn as_torch() {
    let file = OpFixture::open("nn_layers");
    for (name, window) in [("maxpool3s2p1", [3, 2, 1]), ("maxpool1s2", [1, 2, 0])] {
        let (x, [n, c, h, w]) = file.nhwc(&format!("{name}.x0"));
        let (dy, _) = file.nhwc(&format!("{name}.gout"));
        let out = pool(&Device::cpu(), [n, h, w, c], &x, window, |_| dy.clone()).unwrap();
        assert!(out[0].f32s() == file.nhwc(&format!("{name}.y")).0, "{name}: y");
        let want = file.nhwc(&format!("{name}.dx0")).0;
        assert!(out[1].f32s().iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6), "{name}: dx");
    }
}

/// In a window of -inf the winner is inside the image, and NaN wins; tested in as many channels as use scalars and
/// vectors.
#[test]
fn infinities_and_nan() {
    let inf = f32::INFINITY;
    for c in [1, 8] {
        let run = |pixels: [f32; 4]| {
            let x: Vec<f32> = pixels.iter().flat_map(|&v| vec![v; c]).collect();
            let out = everywhere(|dev| pool(dev, [1, 2, 2, c], &x, [3, 2, 1], |n| vec![1.0; n]));
            let first = |o: &Output| o.f32s().into_iter().step_by(c).collect::<Vec<_>>();
            (first(&out[0]), first(&out[1]))
        };
        assert_eq!(run([-inf; 4]), (vec![-inf], vec![1.0, 0.0, 0.0, 0.0]));
        let (y, dx) = run([1.0, f32::NAN, inf, 2.0]);
        assert!(y[0].is_nan());
        assert_eq!(dx, [0.0, 1.0, 0.0, 0.0]);
        let (y, dx) = run([f32::NAN, 3.0, f32::NAN, 2.0]);
        assert!(y[0].is_nan());
        assert_eq!(dx, [0.0, 0.0, 1.0, 0.0], "of several the last");
    }
}

/// The winners are exact and sums are rounded once. The inputs have few digits, so ties are common.
#[test]
fn in_16_bits() {
    for [n, h, w, c, k, stride, pad] in [[2, 9, 12, 19, 3, 2, 1], [2, 13, 15, 40, 3, 2, 1], [2, 7, 10, 64, 1, 2, 0]] {
        in_halves(1.0, |dev, halves| {
            let mut tape = Tape::new(dev);
            let x = tape.leaf(halves.tensor(dev, &[n, h, w, c], &input(n * h * w * c)));
            let y = max_pool(&mut tape, &x, k, stride, pad)?;
            let dy = halves.tensor(dev, y.shape(), &uniform(2, y.value().numel(), -1.0, 1.0));
            let value = y.value().clone();
            let dx = tape.backward(vec![(y, dy)])?.get(&x).expect("dx").clone();
            Ok(vec![value, dx])
        });
    }
}

/// Without a gradient nothing is saved, and y is the same.
#[test]
fn evaluation_keeps_nothing() {
    let out = everywhere(|dev| {
        let mut tape = Tape::inference(dev);
        let x = tape.leaf(Tensor::from_slice(dev, &[1, 2, 2, 1], &[1.0f32, 4.0, 3.0, 2.0])?);
        let y = max_pool(&mut tape, &x, 2, 2, 0)?;
        assert_eq!(tape.saved_bytes(), 0);
        Ok(vec![y.value().clone()])
    });
    assert_eq!(out[0].f32s(), [4.0]);
}

#[test]
fn bad_arguments() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(Tensor::zeros(&dev, &[1, 4, 4, 1], DType::F32).unwrap());
    for (k, stride, pad) in [(0, 1, 0), (16, 1, 0), (3, 0, 1), (3, 1, 2)] {
        let error = max_pool(&mut tape, &x, k, stride, pad).unwrap_err().to_string();
        assert!(error.starts_with("max_pool:"), "{error}");
    }
    let flat = tape.leaf(Tensor::zeros(&dev, &[4, 4], DType::F32).unwrap());
    assert!(max_pool(&mut tape, &flat, 2, 2, 0).is_err());
}
