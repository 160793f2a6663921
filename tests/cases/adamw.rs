//! AdamW (decoupled weight decay) against its definition and torch.optim.AdamW, with state in f32 and in bf16.

use super::optimizer::{EDGES, MANY, assert_rounded, bits, key, of, scalar, tensors, to_the_bit};
use super::{Case, case};
use crate::support::tensors::*;
use half::bf16;
use upres::Result;
use upres::device::Device;
use upres::ops::adamw::{AdamWParam, AdamWRule, adamw};
use upres::ops::common::bias_correction::bias_correction;
use upres::tensor::{DType, Tensor};

const LR: f32 = 0.01;
const SCALE: f32 = 0.7;
const RULE: AdamWRule = AdamWRule { betas: [0.9, 0.999], eps: 1e-8 };

/// One step in f64, from a value, a mean and a square.
fn step_in_f64(step: i32, decay: f64, g: f64, [p, m, s]: [f64; 3]) -> [f64; 3] {
    let [b1, b2] = RULE.betas;
    let g = f64::from(SCALE) * g;
    let (m, s) = (b1 * m + (1.0 - b1) * g, b2 * s + (1.0 - b2) * g * g);
    let (mean, square) = (m / (1.0 - b1.powi(step)), s / (1.0 - b2.powi(step)));
    [p - f64::from(LR) * (decay * p + mean / (square.sqrt() + f64::from(RULE.eps))), m, s]
}

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

fn decay(i: usize) -> f32 {
    if i.is_multiple_of(2) { 0.05 } else { 0.0 }
}

fn correction(device: &Device, step: u64) -> Result<Tensor> {
    Tensor::from_slice(device, &[2], &bias_correction(RULE.betas, step))
}

/// Takes `steps` steps on every parameter, the odd ones without weight decay. Returns values, then means, then squares.
fn run(device: &Device, case: &Case, state: DType, steps: u64) -> Result<Vec<Tensor>> {
    let (mut values, grads) = (tensors(device, case, 1, 1.0)?, tensors(device, case, 2, 1.0)?);
    let zeros = |v: &Tensor| Tensor::zeros(device, v.shape(), state);
    let mut means = values.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    let mut squares = values.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    for step in 1..=steps {
        let both = means.iter_mut().zip(&mut squares);
        let each = values.iter_mut().zip(&grads).zip(both).enumerate();
        let row =
            |(i, ((value, grad), (mean, square)))| AdamWParam { value, grad, mean, square, weight_decay: decay(i) };
        let mut params: Vec<AdamWParam<'_>> = each.map(row).collect();
        let (lr, scale, c) = (scalar(device, LR)?, scalar(device, SCALE)?, correction(device, step)?);
        let key = (state == DType::BF16).then(|| key(device, step)).transpose()?;
        adamw(&mut params, &lr, &scale, &c, RULE, key.as_ref())?;
    }
    values.extend(means);
    values.extend(squares);
    Ok(values)
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let got = everywhere(|dev| run(dev, case, DType::F32, 2));
        for (i, &n) in case.dims.iter().enumerate() {
            let mut want: [Vec<f64>; 3] = Default::default();
            for (&p, &g) in of(1, i, n).iter().zip(&of(2, i, n)) {
                let mut now = [f64::from(p), 0.0, 0.0];
                for step in 1..=2 {
                    now = step_in_f64(step, f64::from(decay(i)), f64::from(g), now);
                }
                want.iter_mut().zip(now).for_each(|(list, v)| list.push(v));
            }
            for (k, what) in ["value", "mean", "square"].iter().enumerate() {
                let what = format!("{}, parameter {i}: {what}", case.name);
                assert_close(&what, &got[k * case.dims.len() + i].f32s(), &want[k], 1e-6, 1e-6);
            }
        }
    }
}

/// Compares each step with the definition, starting from the state the previous step stored: values agree as in f32,
/// state is within one unit of bf16 and unbiased.
#[test]
fn state_in_bf16_is_the_definition_but_for_its_rounding() {
    for case in CASES {
        let of_state = |i: usize, n: usize| [of(1, i, n), vec![0.0; n], vec![0.0; n]];
        let mut before: Vec<[Vec<f32>; 3]> = case.dims.iter().enumerate().map(|(i, &n)| of_state(i, n)).collect();
        for step in 1..=2 {
            let got = everywhere(|dev| run(dev, case, DType::BF16, step));
            for (i, &n) in case.dims.iter().enumerate() {
                let mut want: [Vec<f64>; 3] = Default::default();
                for (k, g) in of(2, i, n).into_iter().enumerate() {
                    let now = std::array::from_fn(|list| f64::from(before[i][list][k]));
                    let now = step_in_f64(step as i32, f64::from(decay(i)), f64::from(g), now);
                    want.iter_mut().zip(now).for_each(|(list, v)| list.push(v));
                }
                let lists: [Vec<f32>; 3] = std::array::from_fn(|k| got[k * case.dims.len() + i].f32s());
                let what = format!("{}, step {step}, parameter {i}", case.name);
                assert_close(&format!("{what}: value"), &lists[0], &want[0], 1e-6, 1e-6);
                assert_rounded(&format!("{what}: mean"), &lists[1], &want[1]);
                assert_rounded(&format!("{what}: square"), &lists[2], &want[2]);
                before[i] = lists;
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
        adamw(&mut [row], &lr, &one, &correction(&dev, step).unwrap(), RULE, None).unwrap();
        let want = wide(&file.f32(&format!("adamw.p{step}")));
        assert_close(&format!("step {step}"), value.f32s(), &want, 1e-6, 1e-7);
    }
}

/// Takes one step on a single parameter whose state is stored as `state`; returns value, mean and square.
fn one_step(dev: &Device, state: DType, scale: f32, step: u64, [p, g, m, s]: [&[f32]; 4]) -> Result<Vec<Tensor>> {
    let flat = |v: &[f32]| Tensor::from_slice(dev, &[v.len()], v);
    let store = |v: &[f32]| match state {
        DType::BF16 => Tensor::from_slice(dev, &[v.len()], &v.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>()),
        _ => flat(v),
    };
    let (mut value, grad, mut mean, mut square) = (flat(p)?, flat(g)?, store(m)?, store(s)?);
    let row = AdamWParam { value: &mut value, grad: &grad, mean: &mut mean, square: &mut square, weight_decay: 0.1 };
    let (lr, scale, key) = (scalar(dev, LR)?, scalar(dev, scale)?, key(dev, step)?);
    adamw(&mut [row], &lr, &scale, &correction(dev, 1)?, RULE, Some(&key))?;
    Ok(vec![value, mean, square])
}

/// A step whose gradients overflowed is skipped on the device, in whichever type the state is stored.
#[test]
fn a_scale_that_is_not_finite_changes_nothing() {
    let lists: [Vec<f32>; 4] = std::array::from_fn(|k| of(k as u64, 0, 40_001));
    for (scale, state) in [f32::NAN, f32::INFINITY].into_iter().flat_map(|s| [(s, DType::F32), (s, DType::BF16)]) {
        let got = everywhere(|dev| one_step(dev, state, scale, 1, lists.each_ref().map(|v| &v[..])));
        for (got, want) in got.iter().zip([&lists[0], &lists[2], &lists[3]]) {
            let stored = |v: &f32| if got.dtype() == DType::BF16 { bf16::from_f32(*v).to_f32() } else { *v };
            assert_eq!(got.f32s(), want.iter().map(stored).collect::<Vec<_>>());
        }
    }
}

/// After 3000 steps the mean of squares of a constant gradient is nearly the gradient's square. With rounding to
/// nearest it would stop at about a quarter of it, where a thousandth of the remainder is half a unit.
#[test]
fn squares_in_bf16_do_not_stand_still() {
    let dev = Device::cpu();
    let n = 1024;
    let grad = Tensor::from_slice(&dev, &[n], &vec![1.0f32; n]).unwrap();
    let zeros = |dtype| Tensor::zeros(&dev, &[n], dtype).unwrap();
    let (mut value, mut mean, mut square) = (zeros(DType::F32), zeros(DType::BF16), zeros(DType::BF16));
    let (lr, one) = (scalar(&dev, LR).unwrap(), scalar(&dev, 1.0).unwrap());
    for step in 1..=3000u64 {
        let row =
            AdamWParam { value: &mut value, grad: &grad, mean: &mut mean, square: &mut square, weight_decay: 0.0 };
        let (c, key) = (correction(&dev, step).unwrap(), key(&dev, step).unwrap());
        adamw(&mut [row], &lr, &one, &c, RULE, Some(&key)).unwrap();
        if step % 1000 == 0 {
            let average = |t: &Tensor| floats(t).iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            let want = 1.0 - RULE.betas[1].powi(step as i32);
            assert!((average(&square) - want).abs() < 0.005, "step {step}: {} instead of {want}", average(&square));
            assert!((average(&mean) - 1.0).abs() < 0.002, "step {step}: {}", average(&mean));
        }
    }
}

/// Combines every edge value as gradient with every edge value as state, over more than one chunk: all devices give the
/// CPU's bits.
#[test]
fn edges_are_the_same_everywhere() {
    let all: Vec<[f32; 3]> =
        EDGES.iter().flat_map(|&g| EDGES.iter().flat_map(move |&m| EDGES.map(|s| [g, m, s]))).collect();
    let list = |k: usize| all.iter().cycle().take(20_001).map(|v| v[k]).collect::<Vec<f32>>();
    let (values, lists) = (of(1, 0, 20_001), [0, 1, 2].map(list));
    let rows = [&values[..], &lists[0], &lists[1], &lists[2]];
    for state in [DType::F32, DType::BF16] {
        to_the_bit(|dev| one_step(dev, state, 1.0, 5, rows));
    }
    let got = one_step(&Device::cpu(), DType::BF16, 1.0, 5, rows).unwrap();
    let wide =
        one_step(&Device::cpu(), DType::F32, 1.0, 5, [rows[0], rows[1], &floats_of(rows[2]), &floats_of(rows[3])]);
    assert_eq!(bits(&got[..1]), bits(&wide.as_ref().unwrap()[..1]), "values are moved by the means before rounding");
    for (got, want) in got[1..].iter().zip(&wide.unwrap()[1..]) {
        for (got, &want) in floats(got).iter().zip(want.f32s()) {
            assert_eq!(got.is_finite(), want.is_finite(), "{got} {want}");
            assert!(want.is_finite() || got.is_nan() == want.is_nan(), "{got} {want}");
        }
    }
}

/// Rounded to bf16.
fn floats_of(v: &[f32]) -> Vec<f32> {
    v.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

/// The random number of a rounding is never reused: it depends on step, parameter and element.
#[test]
fn draws_differ_by_step_parameter_and_element() {
    let same = |v: f32| vec![v; 4096];
    let lists = [same(1.0), same(0.123_456), same(0.0), same(0.0)];
    let run = |step| one_step(&Device::cpu(), DType::BF16, 1.0, step, lists.each_ref().map(|v| &v[..])).unwrap();
    let (one, two, again) = (run(1), run(2), run(1));
    assert!(bits(&one) == bits(&again) && bits(&one) != bits(&two));
    let (mean, square) = (floats(&one[1]), floats(&one[2]));
    let ups = |v: &[f32]| v.iter().map(|x| *x > v.iter().copied().fold(f32::MAX, f32::min)).collect::<Vec<bool>>();
    assert_ne!(ups(&mean), ups(&square), "the two means have numbers of their own");
    // The draws do not repeat after a short distance: chunks, tiles and blocks have numbers of their own.
    for distance in [1, 4, 256, 2048] {
        assert_ne!(mean[..2048], mean[distance..][..2048], "{distance}");
    }
    let two = |dev: &Device| run_two(dev, &lists[1]);
    let got = everywhere(two);
    assert_ne!(got[0].f32s(), got[1].f32s(), "two parameters");
}

/// The means of two parameters with the same gradient.
fn run_two(dev: &Device, grad: &[f32]) -> Result<Vec<Tensor>> {
    let n = grad.len();
    let grad = Tensor::from_slice(dev, &[n], grad)?;
    let zeros = |dtype| (0..2).map(|_| Tensor::zeros(dev, &[n], dtype)).collect::<Result<Vec<_>>>();
    let (mut values, mut means, mut squares) = (zeros(DType::F32)?, zeros(DType::BF16)?, zeros(DType::BF16)?);
    let each = values.iter_mut().zip(means.iter_mut().zip(&mut squares));
    let row = |(value, (mean, square))| AdamWParam { value, grad: &grad, mean, square, weight_decay: 0.0 };
    let (lr, one, key) = (scalar(dev, LR)?, scalar(dev, 1.0)?, key(dev, 1)?);
    adamw(&mut each.map(row).collect::<Vec<_>>(), &lr, &one, &correction(dev, 1)?, RULE, Some(&key))?;
    Ok(means)
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let zeros = |n: usize| Tensor::zeros(&dev, &[n], DType::F32).unwrap();
    let (one, two) = (zeros(1), zeros(2));
    let (mut value, grad, mut mean, mut square) = (zeros(3), zeros(3), zeros(3), zeros(2));
    let mut row =
        [AdamWParam { value: &mut value, grad: &grad, mean: &mut mean, square: &mut square, weight_decay: 0.0 }];
    let error = adamw(&mut row, &one, &one, &one, RULE, None).unwrap_err().to_string();
    assert!(error.starts_with("adamw: correction: want [2]"), "{error}");
    let error = adamw(&mut row, &one, &one, &two, RULE, None).unwrap_err().to_string();
    assert!(error.starts_with("adamw: square 0: want [3]"), "{error}");
    let whole = |n: usize| Tensor::zeros(&dev, &[n], DType::I32).unwrap();
    for (lr, scale, correction, name) in
        [(&whole(1), &one, &two, "lr"), (&one, &whole(1), &two, "grad_scale"), (&one, &one, &whole(2), "correction")]
    {
        let error = adamw(&mut [], lr, scale, correction, RULE, None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("adamw: {name}: want f32")), "{error}");
    }
    let half = |dtype| Tensor::zeros(&dev, &[3], dtype).unwrap();
    let refused = |mean: DType, square: DType, key: Option<&Tensor>| {
        let (mut value, mut mean, mut square) = (zeros(3), half(mean), half(square));
        let row =
            AdamWParam { value: &mut value, grad: &grad, mean: &mut mean, square: &mut square, weight_decay: 0.0 };
        adamw(&mut [row], &one, &one, &two, RULE, key).unwrap_err().to_string()
    };
    let (f32, f16, bf16) = (DType::F32, DType::F16, DType::BF16);
    assert!(refused(bf16, bf16, None).starts_with("adamw: state in bf16 is rounded by the key"));
    assert!(refused(f16, f16, None).starts_with("adamw: state: want f32 or bf16, got f16"));
    for (mean, square) in [(f32, bf16), (bf16, f32)] {
        assert!(refused(mean, square, Some(&key(&dev, 1).unwrap())).starts_with("adamw: state 0: want "));
    }
    assert!(refused(bf16, bf16, Some(&whole(5))).starts_with("adamw: key: want [6]"));
    assert!(refused(bf16, bf16, Some(&zeros(6))).starts_with("adamw: key: want i32"));
}
