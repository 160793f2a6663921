//! Global gradient norm and the clipping factor, against the definition and torch.

use super::optimizer::{MANY, scalar, tensors};
use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::clip_scale::clip_scale;
use upres::ops::grad_norm::grad_norm;
use upres::tensor::{DType, Tensor};

/// Elements of each gradient.
const CASES: &[Case] = &[
    case("no_gradients", &[]),                 // everything frozen: norm 0
    case("empty", &[0]),                       // a gradient without elements
    case("one", &[1]),                         // one weight
    case("tail", &[33, 7, 129]),               // sizes that fill no vector
    case("chunks", &[40_001, 16_384, 16_385]), // several chunks and a rest
    case("many", &MANY),                       // more tensors than a launch takes, some of them empty
    case("large", &[100, 20_000]),             // squares beyond f32
    case("small", &[100, 20_000]),             // squares below f32
    case("fc", &[1_284_505]),                  // the largest matrix of the paper's head (1024 x 12544), a tenth of it
];

fn scale_of(case: &Case) -> f32 {
    match case.name {
        "large" => 1e30,
        "small" => 1e-30,
        _ => 1.0,
    }
}

fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let grads = tensors(device, case, 2, scale_of(case))?;
    let norm = grad_norm(device, &grads.iter().collect::<Vec<_>>())?;
    let scale = clip_scale(&norm, 3.0)?;
    Ok(vec![norm, scale])
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let got = everywhere(|dev| run(dev, case));
        let grads = tensors(&Device::cpu(), case, 2, scale_of(case)).unwrap();
        let squares = grads.iter().flat_map(|g| g.f32s()).map(|&g| f64::from(g).powi(2));
        let norm = squares.sum::<f64>().sqrt();
        // The sum is accumulated in f64, so the answer is rounded once.
        assert_close(case.name, &got[0].f32s(), &[norm], 0.0, 1e-7);
        assert_close(&format!("{}: clip", case.name), &got[1].f32s(), &[(3.0 / (norm + 1e-6)).min(1.0)], 0.0, 1e-6);
    }
}

/// torch.nn.utils.clip_grad_norm_ on the same numbers: norm 85, limit 35.
#[test]
fn clipping_as_torch() {
    let dev = Device::cpu();
    let (a, b) = (Tensor::from_slice(&dev, &[2], &[3.0f32, 4.0]), Tensor::from_slice(&dev, &[1, 2], &[12.0f32, -84.0]));
    let norm = grad_norm(&dev, &[&a.unwrap(), &b.unwrap()]).unwrap();
    assert_eq!(norm.f32s(), [85.0]);
    let scale = clip_scale(&norm, 35.0).unwrap().f32s()[0];
    assert!((scale * 3.0 - 1.235_294).abs() < 1e-6 && (scale * -84.0 + 34.588_235).abs() < 1e-5);
    assert_eq!(clip_scale(&norm, 100.0).unwrap().f32s(), [1.0]);
    let nan = clip_scale(&scalar(&dev, f32::NAN).unwrap(), 1.0).unwrap();
    assert!(nan.f32s()[0].is_nan(), "a norm that is no number must not look like one");
    assert!(clip_scale(&scalar(&dev, f32::INFINITY).unwrap(), 1.0).unwrap().f32s()[0].is_nan());
    assert_eq!(clip_scale(&norm, f32::INFINITY).unwrap().f32s(), [1.0]);
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let (grad, pixels) =
        (Tensor::zeros(&dev, &[2], DType::F32).unwrap(), Tensor::zeros(&dev, &[3], DType::U8).unwrap());
    let error = grad_norm(&dev, &[&grad, &pixels]).unwrap_err().to_string();
    assert!(error.starts_with("grad_norm: gradient 1: want f32"), "{error}");
    assert!(clip_scale(&grad, 1.0).is_err());
    let error = clip_scale(&Tensor::zeros(&dev, &[1], DType::I32).unwrap(), 1.0).unwrap_err().to_string();
    assert!(error.starts_with("clip_scale: norm: want f32"), "{error}");
}
