//! Casts to 16 bits and back: exact rounding, and the gradient through them.

use half::{bf16, f16};

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::cast::cast;
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

fn rounded(dtype: DType, x: &[f32]) -> Vec<f32> {
    match dtype {
        DType::F16 => x.iter().map(|&v| f16::from_f32(v).to_f32()).collect(),
        _ => x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect(),
    }
}

/// Elements.
const CASES: &[Case] = &[
    case("empty", &[0]),         // nothing
    case("one", &[1]),           // no vector
    case("tail", &[33]),         // vectors and one element
    case("rows", &[3, 5, 7]),    // any number of dimensions
    case("chunks", &[40_001]),   // several parallel tasks and blocks
    case("p2", &[200, 336, 64]), // a quarter of the finest level of a COCO image
];

/// Casts to `dtype` and back; returns y and dx.
fn run(dev: &Device, shape: &[usize], dtype: DType, x: &[f32], dy: &[f32]) -> Result<Vec<Tensor>> {
    let mut tape = Tape::new(dev);
    let x = tape.leaf(tensor(dev, shape, x));
    let narrow = cast(&mut tape, &x, dtype)?;
    assert_eq!((narrow.value().dtype(), narrow.shape()), (dtype, shape));
    let y = cast(&mut tape, &narrow, DType::F32)?;
    assert_eq!(tape.saved_bytes(), 0);
    let value = y.value().clone();
    let grads = tape.backward(vec![(y, tensor(dev, shape, dy))])?;
    Ok(vec![value, grads.get(&x).expect("dx").clone()])
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let n = case.dims.iter().product();
        let (x, dy) = (uniform(1, n, -300.0, 300.0), uniform(2, n, -1.0, 1.0));
        for dtype in [DType::F16, DType::BF16] {
            // Rounding is exact: to the bit.
            let out = everywhere_within(0.0, 0.0, |dev| run(dev, case.dims, dtype, &x, &dy));
            assert!(out[0].f32s() == rounded(dtype, &x), "{}: y, {}", case.name, dtype.name());
            assert!(out[1].f32s() == rounded(dtype, &dy), "{}: dx, {}", case.name, dtype.name());
        }
    }
}

#[test]
fn extremes() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    // Ties, subnormal f16, the last f16 before infinity and the first beyond it, and numbers that neither type holds.
    let x =
        [1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11), 1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), 3e-7, -6e-8]
            .into_iter()
            .chain([65_519.0, 65_520.0, -1e6, f32::MAX, inf, -inf, nan, 0.0, -0.0, 1e-30])
            .collect::<Vec<_>>();
    for dtype in [DType::F16, DType::BF16] {
        let out = everywhere_within(0.0, 0.0, |dev| run(dev, &[x.len()], dtype, &x, &x));
        assert_close(dtype.name(), &out[0].f32s(), &wide(&rounded(dtype, &x)), 0.0, 0.0);
    }
    let half = everywhere_within(0.0, 0.0, |dev| run(dev, &[x.len()], DType::F16, &x, &x))[0].f32s();
    assert_eq!(half[..2], [1.0, 1.0 + 2f32.powi(-9)], "ties to even");
    assert_eq!(half[6..9], [65_504.0, inf, -inf]);
    let brain = everywhere(|dev| run(dev, &[x.len()], DType::BF16, &x, &x))[0].f32s();
    assert_eq!(brain[2..4], [1.0, 1.0 + 2f32.powi(-6)], "ties to even");
    assert!(half[12].is_nan() && brain[12].is_nan() && half[14].is_sign_negative());
}

/// If a 16-bit tensor is used twice, its gradients are added in 16 bits.
#[test]
fn gradients_add_in_16_bits() {
    in_halves(1.0, |dev, halves| {
        let mut tape = Tape::new(dev);
        let x = tape.leaf(halves.tensor(dev, &[1001], &uniform(1, 1001, -1.0, 1.0)));
        let (a, b) = (cast(&mut tape, &x, DType::F32)?, cast(&mut tape, &x, DType::F32)?);
        let dy = |seed| {
            let dy = uniform(seed, 1001, 0.5, 1.0);
            tensor(dev, &[1001], &rounded(DType::BF16, &dy))
        };
        let grads = tape.backward(vec![(a, dy(2)), (b, dy(3))])?;
        Ok(vec![grads.get(&x).expect("dx").clone()])
    });
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(tensor(&dev, &[2], &[1.0f32, 2.0]));
    assert!(cast(&mut tape, &x, DType::F32).unwrap().needs_grad(), "x itself");
    let error = cast(&mut tape, &x, DType::I32).unwrap_err().to_string();
    assert!(error.starts_with("cast: x: want f32 to f16 or bf16"), "{error}");
    let narrow = cast(&mut tape, &x, DType::F16).unwrap();
    assert!(cast(&mut tape, &narrow, DType::BF16).is_err());
    let pixels = tape.constant(Tensor::zeros(&dev, &[1], DType::U8).unwrap());
    assert!(cast(&mut tape, &pixels, DType::F32).is_err() && cast(&mut tape, &pixels, DType::U8).is_err());
}
