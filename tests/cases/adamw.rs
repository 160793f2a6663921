use super::optimizer::{MANY, of, scalar, tensors};
use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::adamw::{AdamWParam, AdamWRule, adamw, bias_correction};
use upres::tensor::{DType, Tensor};

/// Elements of each parameter.
const CASES: &[Case] = &[
    case("no_parameters", &[]),                // everything frozen
    case("empty", &[0, 3]),                    // a parameter without elements
    case("one", &[1]),                         // one weight
    case("tail", &[33, 7, 129]),               // sizes that fill no vector
    case("chunks", &[40_001, 16_384, 16_385]), // several chunks and a rest
    case("many", &MANY),                       // more tensors than a launch takes, some of them empty
    case("fc", &[1_179_648]),                  // the largest matrix of Swin-T's last stage (3072 x 768), half of it
];

const LR: f32 = 0.01;
const SCALE: f32 = 0.7;
const RULE: AdamWRule = AdamWRule { betas: [0.9, 0.999], eps: 1e-8 };

fn decay(i: usize) -> f32 {
    if i.is_multiple_of(2) { 0.05 } else { 0.0 }
}

fn correction(device: &Device, step: u64) -> Result<Tensor> {
    Tensor::from_slice(device, &[2], &bias_correction(RULE.betas, step))
}

/// Two steps on every parameter, the odd ones without decay: values, then means, then squares.
fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let (mut values, grads) = (tensors(device, case, 1, 1.0)?, tensors(device, case, 2, 1.0)?);
    let zeros = |v: &Tensor| Tensor::zeros(device, v.shape(), DType::F32);
    let mut means = values.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    let mut squares = values.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    for step in 1..=2 {
        let state = means.iter_mut().zip(&mut squares);
        let each = values.iter_mut().zip(&grads).zip(state).enumerate();
        let row =
            |(i, ((value, grad), (mean, square)))| AdamWParam { value, grad, mean, square, weight_decay: decay(i) };
        let mut params: Vec<AdamWParam<'_>> = each.map(row).collect();
        adamw(&mut params, &scalar(device, LR)?, &scalar(device, SCALE)?, &correction(device, step)?, RULE)?;
    }
    values.extend(means);
    values.extend(squares);
    Ok(values)
}

#[test]
fn equals_the_definition() {
    let [b1, b2] = RULE.betas;
    for case in CASES {
        let got = everywhere(|dev| run(dev, case));
        for (i, &n) in case.dims.iter().enumerate() {
            let mut want: [Vec<f64>; 3] = Default::default();
            for (&p, &g) in of(1, i, n).iter().zip(&of(2, i, n)) {
                let (mut p, g, mut m, mut s) = (f64::from(p), f64::from(SCALE) * f64::from(g), 0.0, 0.0);
                for step in 1..=2 {
                    m = b1 * m + (1.0 - b1) * g;
                    s = b2 * s + (1.0 - b2) * g * g;
                    let (m, s) = (m / (1.0 - b1.powi(step)), s / (1.0 - b2.powi(step)));
                    p -= f64::from(LR) * (f64::from(decay(i)) * p + m / (s.sqrt() + f64::from(RULE.eps)));
                }
                for (list, v) in want.iter_mut().zip([p, m, s]) {
                    list.push(v);
                }
            }
            for (k, what) in ["value", "mean", "square"].iter().enumerate() {
                let what = format!("{}, parameter {i}: {what}", case.name);
                assert_close(&what, &got[k * case.dims.len() + i].f32s(), &want[k], 1e-6, 1e-6);
            }
        }
    }
}

/// Four steps of torch.optim.AdamW with the paper's numbers for Swin-T: lr 4e-4, betas 0.9 and 0.999, decay 0.05.
#[test]
fn as_torch() {
    let dev = Device::cpu();
    let file = OpFixture::open("optim");
    let start = file.f32("adamw.p0");
    let mut value = Tensor::from_slice(&dev, &[start.len()], &start).unwrap();
    let zeros = || Tensor::zeros(&dev, &[start.len()], DType::F32).unwrap();
    let (mut mean, mut square) = (zeros(), zeros());
    let (lr, one) = (scalar(&dev, 4e-4).unwrap(), scalar(&dev, 1.0).unwrap());
    for step in 1..=4 {
        let grad = Tensor::from_slice(&dev, &[start.len()], &file.f32(&format!("adamw.g{}", step - 1))).unwrap();
        let row =
            AdamWParam { value: &mut value, grad: &grad, mean: &mut mean, square: &mut square, weight_decay: 0.05 };
        adamw(&mut [row], &lr, &one, &correction(&dev, step).unwrap(), RULE).unwrap();
        let want = wide(&file.f32(&format!("adamw.p{step}")));
        assert_close(&format!("step {step}"), value.f32s(), &want, 1e-6, 1e-7);
    }
}

/// A step whose gradients overflowed is skipped, on the device.
#[test]
fn a_scale_that_is_not_finite_changes_nothing() {
    let case = &CASES[4];
    for scale in [f32::NAN, f32::INFINITY] {
        let got = everywhere(|dev| {
            let (mut values, grads) = (tensors(dev, case, 1, 1.0)?, tensors(dev, case, 2, 1.0)?);
            let (mut means, mut squares) = (tensors(dev, case, 3, 1.0)?, tensors(dev, case, 4, 1.0)?);
            let each = values.iter_mut().zip(&grads).zip(means.iter_mut().zip(&mut squares));
            let row = |((value, grad), (mean, square))| AdamWParam { value, grad, mean, square, weight_decay: 0.1 };
            let mut params: Vec<AdamWParam<'_>> = each.map(row).collect();
            adamw(&mut params, &scalar(dev, LR)?, &scalar(dev, scale)?, &correction(dev, 1)?, RULE)?;
            values.extend(means);
            values.extend(squares);
            Ok(values)
        });
        for (i, &n) in case.dims.iter().enumerate() {
            for (k, seed) in [1, 3, 4].into_iter().enumerate() {
                assert_eq!(got[k * case.dims.len() + i].f32s(), of(seed, i, n));
            }
        }
    }
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let zeros = |n: usize| Tensor::zeros(&dev, &[n], DType::F32).unwrap();
    let (one, two) = (zeros(1), zeros(2));
    let (mut value, grad, mut mean, mut square) = (zeros(3), zeros(3), zeros(3), zeros(2));
    let mut row =
        [AdamWParam { value: &mut value, grad: &grad, mean: &mut mean, square: &mut square, weight_decay: 0.0 }];
    let error = adamw(&mut row, &one, &one, &one, RULE).unwrap_err().to_string();
    assert!(error.starts_with("adamw: correction: want [2]"), "{error}");
    let error = adamw(&mut row, &one, &one, &two, RULE).unwrap_err().to_string();
    assert!(error.starts_with("adamw: square 0: want [3]"), "{error}");
    let whole = |n: usize| Tensor::zeros(&dev, &[n], DType::I32).unwrap();
    for (lr, scale, correction, name) in
        [(&whole(1), &one, &two, "lr"), (&one, &whole(1), &two, "grad_scale"), (&one, &one, &whole(2), "correction")]
    {
        let error = adamw(&mut [], lr, scale, correction, RULE).unwrap_err().to_string();
        assert!(error.starts_with(&format!("adamw: {name}: want f32")), "{error}");
    }
}
