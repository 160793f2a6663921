//! GELU with the exact error function, against its definition and torch.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::gelu::gelu;
use upres::ops::max_pool::max_pool;
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

/// The definition: Φ and φ, the cumulative function and the density of the normal distribution.
fn normal(x: f64) -> (f64, f64) {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    let a = x.abs();
    // The probability beyond a: the series of Φ - 1/2 for small a, the continued fraction of the tail for large a.
    let beyond = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for k in 1..200 {
            term *= a * a / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 - density * sum
    } else {
        density / (1..200).rev().fold(a, |f, k| a + f64::from(k) / f)
    };
    (if x < 0.0 { beyond } else { 1.0 - beyond }, density)
}

fn slope(x: f64) -> f64 {
    let (below, density) = normal(x);
    below + x * density
}

/// Any shape.
const CASES: &[Case] = &[
    case("empty", &[0, 96]),
    case("one", &[1]),
    case("tail", &[3, 5, 7]),             // fills no vector
    case("chunks", &[2, 91, 97, 3]),      // several chunks, the last one odd
    case("swin_t_mlp", &[2 * 3136, 384]), // the widest hidden layer of an image of 224 pixels
];

fn inputs(case: &Case) -> (Vec<f32>, Vec<f32>) {
    let n = case.dims.iter().product();
    (uniform(1, n, -6.0, 6.0), uniform(2, n, -1.0, 1.0))
}

/// Returns y, dx and, if dy is also held elsewhere, dy after the backward pass.
fn run_case(dev: &Device, shape: &[usize], x: &[f32], dy: &[f32], shared: bool) -> Result<Vec<Tensor>> {
    let mut tape = Tape::new(dev);
    let x = tape.leaf(tensor(dev, shape, x));
    let y = gelu(&mut tape, &x)?;
    let value = y.value().clone();
    let dy = tensor(dev, shape, dy);
    let held = shared.then(|| dy.clone());
    let grads = tape.backward(vec![(y, dy)])?;
    let mut out = vec![value, grads.get(&x).expect("dx").clone()];
    out.extend(held);
    Ok(out)
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let (x, dy) = inputs(case);
        let y: Vec<f64> = x.iter().map(|&x| f64::from(x) * normal(x.into()).0).collect();
        let dx: Vec<f64> = x.iter().zip(&dy).map(|(&x, &dy)| f64::from(dy) * slope(x.into())).collect();
        // A dy that is held elsewhere stays unchanged, and dx is the same.
        let alone = everywhere(|dev| run_case(dev, case.dims, &x, &dy, false));
        let shared = everywhere(|dev| run_case(dev, case.dims, &x, &dy, true));
        assert!(alone[..] == shared[..2] && shared[2].f32s() == dy, "{}: somebody else's dy", case.name);
        assert_close(&format!("{}: y", case.name), &alone[0].f32s(), &y, 3e-7, 2e-7);
        assert_close(&format!("{}: dx", case.name), &alone[1].f32s(), &dx, 3e-7, 2e-7);
    }
}

/// Φ is within 1.5e-7, as the doc comment promises: y is within 1.5e-7 |x| plus half a unit in its last place, the
/// slope within 2.2e-7. (torch on the same numbers: 3.1e-7 and 2.9e-7.)
#[test]
fn error_of_the_approximation() {
    let x: Vec<f32> = (0..400_000).map(|i| (i as f32 - 200_000.0) * 7.3e-5).collect();
    let out = everywhere(|dev| run_case(dev, &[x.len()], &x, &vec![1.0; x.len()], false));
    let (mut of_phi, mut of_slope) = (0.0f64, 0.0f64);
    for ((&x, y), dx) in x.iter().zip(out[0].f32s()).zip(out[1].f32s()) {
        let (x, ulp) = (f64::from(x), f64::from(y.abs()) * 2f64.powi(-24));
        let error = ((f64::from(y) - x * normal(x).0).abs() - ulp).max(0.0);
        of_phi = of_phi.max(error / x.abs().max(1e-3));
        of_slope = of_slope.max((f64::from(dx) - slope(x)).abs());
    }
    println!("largest error of the cumulative function {of_phi:.2e}, of the slope {of_slope:.2e}");
    assert!(of_phi <= 1.5e-7 && of_slope <= 2.2e-7, "{of_phi:.2e} {of_slope:.2e}");
}

#[test]
fn gradients_are_the_slopes() {
    let case = &CASES[2];
    let (x, dy) = inputs(case);
    let out = run_case(&Device::cpu(), case.dims, &x, &dy, false).unwrap();
    assert_gradient(case.name, &x, out[1].f32s(), 1e-6, 1e-6, |x| {
        x.iter().zip(&dy).map(|(&x, &dy)| f64::from(dy) * x * normal(x).0).sum()
    });
}

/// The limits at infinity, and NaN.
#[test]
fn ends() {
    let x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, f32::MAX, f32::MIN, 1e-40, -13.0];
    let out = everywhere(|dev| run_case(dev, &[9], &x, &[1.0; 9], false));
    let (y, dx) = (out[0].f32s(), out[1].f32s());
    assert!(y[2].is_nan() && dx[2].is_nan(), "NaN is hidden");
    for (i, want, slope) in [(0, f32::INFINITY, 1.0), (1, 0.0, 0.0), (5, f32::MAX, 1.0), (6, 0.0, 0.0), (8, 0.0, 0.0)] {
        assert!(y[i] == want || (y[i] - want).abs() < 1e-30, "gelu({}) = {}", x[i], y[i]);
        assert!((dx[i] - slope).abs() < 1e-30, "slope at {}: {}", x[i], dx[i]);
    }
    assert_eq!((y[3], y[4]), (0.0, 0.0));
    assert!((dx[3] - 0.5).abs() < 1e-7 && (dx[4] - 0.5).abs() < 1e-7);
}

#[test]
fn in_16_bits() {
    for shape in [&[3, 5, 7][..], &[17, 64]] {
        let n = shape.iter().product();
        in_halves(1.0, |dev, halves| {
            let mut tape = Tape::new(dev);
            let x = halves.tensor(dev, shape, &uniform(1, n, -6.0, 6.0));
            let dy = halves.tensor(dev, shape, &uniform(2, n, -1.0, 1.0));
            let x = tape.leaf(x);
            let y = gelu(&mut tape, &x)?;
            let value = y.value().clone();
            Ok(vec![value, tape.backward(vec![(y, dy)])?.get(&x).expect("dx").clone()])
        });
    }
}

#[test]
fn saves_its_input_without_a_copy() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(Tensor::zeros(&dev, &[1, 4, 4, 3], DType::F32).unwrap());
    let x = max_pool(&mut tape, &x, 1, 1, 0).unwrap();
    let before = tape.saved_bytes();
    assert!(x.value().is_unique());
    gelu(&mut tape, &x).unwrap();
    assert_eq!(tape.saved_bytes() - before, 4 * 4 * 3 * 4);
    assert!(!x.value().is_unique(), "a copy was saved");
    let ints = tape.constant(Tensor::zeros(&dev, &[2], DType::I32).unwrap());
    let error = gelu(&mut tape, &ints).unwrap_err().to_string();
    assert!(error.starts_with("gelu: x: want f32"), "{error}");
}

#[test]
fn as_torch() {
    let file = OpFixture::open("swin_layers");
    let (x, dy) = (file.f32("gelu.x0"), file.f32("gelu.gout"));
    let out = everywhere(|dev| run_case(dev, &[x.len()], &x, &dy, false));
    for (out, key) in out.iter().zip(["y", "dx0"]) {
        assert_close(key, &out.f32s(), &wide(&file.f32(&format!("gelu.{key}"))), 1e-6, 1e-6);
    }
}
