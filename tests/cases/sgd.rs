use super::optimizer::{MANY, of, scalar, tensors};
use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::sgd::{SgdParam, sgd};
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

const LR: f32 = 0.1;
const MOMENTUM: f32 = 0.9;
const SCALE: f32 = 0.7;

/// Two steps on every parameter, the odd ones without decay: values, then velocities.
fn run(device: &Device, case: &Case, nesterov: bool) -> Result<Vec<Tensor>> {
    let (mut values, grads) = (tensors(device, case, 1, 1.0)?, tensors(device, case, 2, 1.0)?);
    let zeros = |v: &Tensor| Tensor::zeros(device, v.shape(), DType::F32);
    let mut velocities = values.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    for _ in 0..2 {
        let each = values.iter_mut().zip(&grads).zip(&mut velocities).enumerate();
        let mut params: Vec<SgdParam<'_>> = each
            .map(|(i, ((value, grad), momentum))| SgdParam { value, grad, momentum, weight_decay: decay(i) })
            .collect();
        sgd(&mut params, &scalar(device, LR)?, &scalar(device, SCALE)?, MOMENTUM, nesterov)?;
    }
    values.extend(velocities);
    Ok(values)
}

fn decay(i: usize) -> f32 {
    if i.is_multiple_of(2) { 0.05 } else { 0.0 }
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        for nesterov in [false, true] {
            let got = everywhere(|dev| run(dev, case, nesterov));
            for (i, &n) in case.dims.iter().enumerate() {
                let (mut values, mut velocities) = (Vec::new(), Vec::new());
                for (&p, &g) in of(1, i, n).iter().zip(&of(2, i, n)) {
                    let (mut p, g, mut v, m) = (f64::from(p), f64::from(g), 0.0, f64::from(MOMENTUM));
                    for _ in 0..2 {
                        let g = f64::from(SCALE) * g + f64::from(decay(i)) * p;
                        v = m * v + g;
                        p -= f64::from(LR) * if nesterov { g + m * v } else { v };
                    }
                    values.push(p);
                    velocities.push(v);
                }
                let what = format!("{}, parameter {i}, nesterov {nesterov}", case.name);
                assert_close(&format!("{what}: value"), &got[i].f32s(), &values, 1e-6, 1e-6);
                assert_close(&format!("{what}: velocity"), &got[case.dims.len() + i].f32s(), &velocities, 1e-6, 1e-6);
            }
        }
    }
}

/// Four steps of torch.optim.SGD (lr 0.08, momentum 0.9, decay 1e-4: the paper's), and three with Nesterov's momentum.
#[test]
fn as_torch() {
    let dev = Device::cpu();
    let steps = |start: &[f32], grads: &[Vec<f32>], lr: f32, weight_decay: f32, nesterov: bool| -> Vec<Vec<f32>> {
        let mut value = Tensor::from_slice(&dev, &[start.len()], start).unwrap();
        let mut momentum = Tensor::zeros(&dev, &[start.len()], DType::F32).unwrap();
        let (lr, one) = (scalar(&dev, lr).unwrap(), scalar(&dev, 1.0).unwrap());
        let mut after = Vec::new();
        for g in grads {
            let grad = Tensor::from_slice(&dev, &[g.len()], g).unwrap();
            let mut params = [SgdParam { value: &mut value, grad: &grad, momentum: &mut momentum, weight_decay }];
            sgd(&mut params, &lr, &one, 0.9, nesterov).unwrap();
            after.push(value.f32s().to_vec());
        }
        after
    };
    let file = OpFixture::open("optim");
    let grads: Vec<_> = (0..4).map(|i| file.f32(&format!("sgd.g{i}"))).collect();
    for (i, got) in steps(&file.f32("sgd.p0"), &grads, 0.08, 1e-4, false).iter().enumerate() {
        let want = wide(&file.f32(&format!("sgd.p{}", i + 1)));
        assert_close(&format!("step {i}"), got, &want, 1e-6, 1e-6);
    }
    let grads = [vec![0.3, -0.1, 2.0], vec![-0.7, 0.2, 0.0], vec![0.5, 0.5, -1.0]];
    let want = [
        [0.941_100_001_335_144, -1.977_200_031_280_517_6, 0.119_049_973_785_877_23],
        [1.047_201_871_871_948_2, -2.001_723_289_489_746, -0.043_581_228_703_260_42],
        [0.983_550_906_181_335_4, -2.098_770_380_020_141_6, 0.000_240_637_266_065_970_86],
    ];
    for (got, want) in steps(&[1.0, -2.0, 0.5], &grads, 0.1, 0.01, true).iter().zip(&want) {
        assert_close("nesterov", got, want, 1e-6, 1e-6);
    }
}

/// A step whose gradients overflowed is skipped, on the device.
#[test]
fn a_scale_that_is_not_finite_changes_nothing() {
    let case = &CASES[4];
    for scale in [f32::NAN, f32::INFINITY] {
        let got = everywhere(|dev| {
            let (mut values, grads) = (tensors(dev, case, 1, 1.0)?, tensors(dev, case, 2, 1.0)?);
            let mut velocities = tensors(dev, case, 3, 1.0)?;
            let each = values.iter_mut().zip(&grads).zip(&mut velocities);
            let mut params: Vec<_> =
                each.map(|((value, grad), momentum)| SgdParam { value, grad, momentum, weight_decay: 0.1 }).collect();
            sgd(&mut params, &scalar(dev, LR)?, &scalar(dev, scale)?, MOMENTUM, false)?;
            values.extend(velocities);
            Ok(values)
        });
        for (i, &n) in case.dims.iter().enumerate() {
            assert_eq!(got[i].f32s(), of(1, i, n));
            assert_eq!(got[case.dims.len() + i].f32s(), of(3, i, n));
        }
    }
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let zeros = |n: usize| Tensor::zeros(&dev, &[n], DType::F32).unwrap();
    let one = scalar(&dev, 1.0).unwrap();
    let (mut value, grad, mut momentum) = (zeros(3), zeros(2), zeros(3));
    let mut params = [SgdParam { value: &mut value, grad: &grad, momentum: &mut momentum, weight_decay: 0.0 }];
    let error = sgd(&mut params, &one, &one, 0.9, false).unwrap_err().to_string();
    assert!(error.starts_with("sgd: gradient 0: want [3]"), "{error}");
    let whole = Tensor::zeros(&dev, &[1], DType::I32).unwrap();
    for (lr, scale, name) in [(&whole, &one, "lr"), (&one, &whole, "grad_scale")] {
        let error = sgd(&mut [], lr, scale, 0.9, false).unwrap_err().to_string();
        assert!(error.starts_with(&format!("sgd: {name}: want f32")), "{error}");
    }
}
