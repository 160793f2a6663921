//! The moving average of the weights, against its definition and torch.

use super::optimizer::{MANY, of, scalar, tensors};
use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::ema::ema;
use upres::tensor::{DType, Tensor};

/// Elements of each parameter.
const CASES: &[Case] = &[
    case("no_parameters", &[]),                // everything frozen
    case("empty", &[0, 3]),                    // a parameter without elements
    case("one", &[1]),                         // one weight
    case("tail", &[33, 7, 129]),               // sizes that fill no vector
    case("chunks", &[40_001, 16_384, 16_385]), // several chunks and a rest
    case("many", &MANY),                       // more tensors than a launch takes, some of them empty
    case("fc", &[1_284_505]),                  // the largest matrix of the paper's head (1024 x 12544), a tenth of it
];

fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let (mut averages, values) = (tensors(device, case, 3, 1.0)?, tensors(device, case, 1, 1.0)?);
    let mut pairs: Vec<_> = averages.iter_mut().zip(&values).collect();
    ema(&mut pairs, &scalar(device, 0.1)?)?;
    Ok(averages)
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        for (i, got) in everywhere(|dev| run(dev, case)).iter().enumerate() {
            let n = got.f32s().len();
            let pairs = of(3, i, n).into_iter().zip(of(1, i, n));
            let want: Vec<f64> = pairs.map(|(a, v)| 0.9 * f64::from(a) + 0.1 * f64::from(v)).collect();
            assert_close(case.name, &got.f32s(), &want, 1e-6, 1e-6);
        }
    }
}

/// torch's get_ema_avg_fn(0.9) on the same numbers. A value that equals its average stays the same to the bit.
#[test]
fn as_torch() {
    let dev = Device::cpu();
    let mut average = Tensor::from_slice(&dev, &[2], &[1.0f32, 2.0]).unwrap();
    let share = scalar(&dev, 0.1).unwrap();
    for (value, want) in [([3.0f32, 2.0], [1.200_000_047_683_715_8, 2.0]), ([0.0, -1.0], [1.080_000_042_915_344, 1.7])]
    {
        let value = Tensor::from_slice(&dev, &[2], &value).unwrap();
        ema(&mut [(&mut average, &value)], &share).unwrap();
        assert_close("average", average.f32s(), &want, 1e-6, 1e-6);
    }
    assert_eq!(run_same(0.1), 0.1);
}

/// With a decay so near to 1 that f32 rounds it to 1, the average still moves.
#[test]
fn long_averages_move() {
    let dev = Device::cpu();
    let share = (1.0 - 0.999_999_99f64) as f32;
    let (mut a, b) = (scalar(&dev, 0.0).unwrap(), scalar(&dev, 1.0).unwrap());
    ema(&mut [(&mut a, &b)], &scalar(&dev, share).unwrap()).unwrap();
    assert_close("average", a.f32s(), &[1e-8], 0.0, 1e-6);
}

fn run_same(v: f32) -> f32 {
    let dev = Device::cpu();
    let (mut a, b) = (scalar(&dev, v).unwrap(), scalar(&dev, v).unwrap());
    ema(&mut [(&mut a, &b)], &scalar(&dev, 0.7).unwrap()).unwrap();
    a.f32s()[0]
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let zeros = |n: usize| Tensor::zeros(&dev, &[n], DType::F32).unwrap();
    let error = ema(&mut [(&mut zeros(3), &zeros(2))], &scalar(&dev, 0.0).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("ema: value 0"), "{error}");
    let whole = Tensor::zeros(&dev, &[1], DType::I32).unwrap();
    let error = ema(&mut [], &whole).unwrap_err().to_string();
    assert!(error.starts_with("ema: share: want f32"), "{error}");
}
