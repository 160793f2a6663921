//! SGD with momentum and weight decay against its definition and torch.optim.SGD, with velocity in f32 and in bf16.

use super::optimizer::{EDGES, MANY, assert_rounded, bits, key, of, scalar, tensors, to_the_bit};
use super::{Case, case};
use crate::support::tensors::*;
use half::bf16;
use upres::Result;
use upres::device::Device;
use upres::ops::sgd::{SgdParam, sgd};
use upres::tensor::{DType, Tensor};

const LR: f32 = 0.1;
const MOMENTUM: f32 = 0.9;
const SCALE: f32 = 0.7;

/// One step in f64, from a value and a velocity.
fn step_in_f64(nesterov: bool, decay: f64, g: f64, [p, v]: [f64; 2]) -> [f64; 2] {
    let m = f64::from(MOMENTUM);
    let g = f64::from(SCALE) * g + decay * p;
    let v = m * v + g;
    [p - f64::from(LR) * if nesterov { g + m * v } else { v }, v]
}

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

/// Takes `steps` steps on every parameter, the odd ones without weight decay. Returns values, then velocities.
fn run(device: &Device, case: &Case, nesterov: bool, state: DType, steps: u64) -> Result<Vec<Tensor>> {
    let (mut values, grads) = (tensors(device, case, 1, 1.0)?, tensors(device, case, 2, 1.0)?);
    let zeros = |v: &Tensor| Tensor::zeros(device, v.shape(), state);
    let mut velocities = values.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    for step in 1..=steps {
        let each = values.iter_mut().zip(&grads).zip(&mut velocities).enumerate();
        let mut params: Vec<SgdParam<'_>> = each
            .map(|(i, ((value, grad), momentum))| SgdParam { value, grad, momentum, weight_decay: decay(i) })
            .collect();
        let key = (state == DType::BF16).then(|| key(device, step)).transpose()?;
        sgd(&mut params, &scalar(device, LR)?, &scalar(device, SCALE)?, MOMENTUM, nesterov, key.as_ref())?;
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
            let got = everywhere(|dev| run(dev, case, nesterov, DType::F32, 2));
            for (i, &n) in case.dims.iter().enumerate() {
                let (mut values, mut velocities) = (Vec::new(), Vec::new());
                for (&p, &g) in of(1, i, n).iter().zip(&of(2, i, n)) {
                    let step = |now, _| step_in_f64(nesterov, f64::from(decay(i)), f64::from(g), now);
                    let [p, v] = (0..2).fold([f64::from(p), 0.0], step);
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

/// Compares each step with the definition, starting from the state the previous step stored: values agree as in f32,
/// velocities are within one unit of bf16 and unbiased.
#[test]
fn velocities_in_bf16_are_the_definition_but_for_their_rounding() {
    for (case, nesterov) in CASES.iter().flat_map(|case| [(case, false), (case, true)]) {
        let mut before: Vec<[Vec<f32>; 2]> =
            case.dims.iter().enumerate().map(|(i, &n)| [of(1, i, n), vec![0.0; n]]).collect();
        for steps in 1..=2 {
            let got = everywhere(|dev| run(dev, case, nesterov, DType::BF16, steps));
            for (i, &n) in case.dims.iter().enumerate() {
                let (mut values, mut velocities) = (Vec::new(), Vec::new());
                for (k, g) in of(2, i, n).into_iter().enumerate() {
                    let now = [0, 1].map(|list: usize| f64::from(before[i][list][k]));
                    let [p, v] = step_in_f64(nesterov, f64::from(decay(i)), f64::from(g), now);
                    values.push(p);
                    velocities.push(v);
                }
                let what = format!("{}, step {steps}, parameter {i}, nesterov {nesterov}", case.name);
                before[i] = [got[i].f32s(), got[case.dims.len() + i].f32s()];
                assert_close(&format!("{what}: value"), &before[i][0], &values, 1e-6, 1e-6);
                assert_rounded(&format!("{what}: velocity"), &before[i][1], &velocities);
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
            sgd(&mut params, &lr, &one, 0.9, nesterov, None).unwrap();
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

/// Takes one step on a single parameter whose velocity is stored as `state`; returns value and velocity.
fn one_step(dev: &Device, state: DType, scale: f32, step: u64, [p, g, v]: [&[f32]; 3]) -> Result<Vec<Tensor>> {
    let flat = |v: &[f32]| Tensor::from_slice(dev, &[v.len()], v);
    let (mut value, grad) = (flat(p)?, flat(g)?);
    let mut momentum = match state {
        DType::BF16 => Tensor::from_slice(dev, &[v.len()], &v.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>())?,
        _ => flat(v)?,
    };
    let row = SgdParam { value: &mut value, grad: &grad, momentum: &mut momentum, weight_decay: 0.1 };
    sgd(&mut [row], &scalar(dev, LR)?, &scalar(dev, scale)?, MOMENTUM, false, Some(&key(dev, step)?))?;
    Ok(vec![value, momentum])
}

/// A step whose gradients overflowed is skipped on the device, in whichever type the velocity is stored.
#[test]
fn a_scale_that_is_not_finite_changes_nothing() {
    let lists: [Vec<f32>; 3] = std::array::from_fn(|k| of(k as u64, 0, 40_001));
    for (scale, state) in [f32::NAN, f32::INFINITY].into_iter().flat_map(|s| [(s, DType::F32), (s, DType::BF16)]) {
        let got = everywhere(|dev| one_step(dev, state, scale, 1, lists.each_ref().map(|v| &v[..])));
        for (got, want) in got.iter().zip([&lists[0], &lists[2]]) {
            let stored = |v: &f32| if got.dtype() == DType::BF16 { bf16::from_f32(*v).to_f32() } else { *v };
            assert_eq!(got.f32s(), want.iter().map(stored).collect::<Vec<_>>());
        }
    }
}

/// Combines every edge value as gradient with every edge value as velocity, over more than one chunk: all devices give
/// the CPU's bits.
#[test]
fn edges_are_the_same_everywhere() {
    let all: Vec<[f32; 2]> = EDGES.iter().flat_map(|&g| EDGES.map(|v| [g, v])).collect();
    let list = |k: usize| all.iter().cycle().take(20_001).map(|v| v[k]).collect::<Vec<f32>>();
    let (values, lists) = (of(1, 0, 20_001), [0, 1].map(list));
    let rows = [&values[..], &lists[0], &lists[1]];
    for state in [DType::F32, DType::BF16] {
        to_the_bit(|dev| one_step(dev, state, 1.0, 5, rows));
    }
    let got = one_step(&Device::cpu(), DType::BF16, 1.0, 5, rows).unwrap();
    let rounded: Vec<f32> = rows[2].iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    let wide = one_step(&Device::cpu(), DType::F32, 1.0, 5, [rows[0], rows[1], &rounded]).unwrap();
    assert_eq!(bits(&got[..1]), bits(&wide[..1]), "values are moved by the velocity before rounding");
    for (got, &want) in floats(&got[1]).iter().zip(wide[1].f32s()) {
        assert_eq!((got.is_finite(), got.is_nan()), (want.is_finite(), want.is_nan()), "{got} {want}");
    }
}

/// A velocity that decays by less than half a unit per step still decays: on average 0.999 of it remain after each.
#[test]
fn velocities_in_bf16_do_not_stand_still() {
    let dev = Device::cpu();
    let n = 1024;
    let zeros = Tensor::zeros(&dev, &[n], DType::F32).unwrap();
    let mut value = Tensor::zeros(&dev, &[n], DType::F32).unwrap();
    let mut momentum = Tensor::from_slice(&dev, &[n], &vec![bf16::ONE; n]).unwrap();
    let one = scalar(&dev, 1.0).unwrap();
    for step in 1..=1000 {
        let row = SgdParam { value: &mut value, grad: &zeros, momentum: &mut momentum, weight_decay: 0.0 };
        sgd(&mut [row], &one, &one, 0.999, false, Some(&key(&dev, step).unwrap())).unwrap();
    }
    let mean = floats(&momentum).iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
    assert!((mean - 0.999f64.powi(1000)).abs() < 0.005, "{mean}");
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let zeros = |n: usize| Tensor::zeros(&dev, &[n], DType::F32).unwrap();
    let one = scalar(&dev, 1.0).unwrap();
    let (mut value, grad, mut momentum) = (zeros(3), zeros(2), zeros(3));
    let mut params = [SgdParam { value: &mut value, grad: &grad, momentum: &mut momentum, weight_decay: 0.0 }];
    let error = sgd(&mut params, &one, &one, 0.9, false, None).unwrap_err().to_string();
    assert!(error.starts_with("sgd: gradient 0: want [3]"), "{error}");
    let whole = Tensor::zeros(&dev, &[1], DType::I32).unwrap();
    for (lr, scale, name) in [(&whole, &one, "lr"), (&one, &whole, "grad_scale")] {
        let error = sgd(&mut [], lr, scale, 0.9, false, None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("sgd: {name}: want f32")), "{error}");
    }
    let refused = |state: DType, key: Option<&Tensor>| {
        let (mut value, grad, mut momentum) = (zeros(3), zeros(3), Tensor::zeros(&dev, &[3], state).unwrap());
        let row = SgdParam { value: &mut value, grad: &grad, momentum: &mut momentum, weight_decay: 0.0 };
        sgd(&mut [row], &one, &one, 0.9, false, key).unwrap_err().to_string()
    };
    assert!(refused(DType::BF16, None).starts_with("sgd: state in bf16 is rounded by the key"));
    assert!(refused(DType::F16, None).starts_with("sgd: state: want f32 or bf16, got f16"));
    assert!(refused(DType::BF16, Some(&whole)).starts_with("sgd: key: want [6]"));
    let (mut values, grad) = ([zeros(3), zeros(3)], zeros(3));
    let mut momenta = [DType::F32, DType::BF16].map(|dtype| Tensor::zeros(&dev, &[3], dtype).unwrap());
    let each = values.iter_mut().zip(&mut momenta);
    let row = |(value, momentum)| SgdParam { value, grad: &grad, momentum, weight_decay: 0.0 };
    let error = sgd(&mut each.map(row).collect::<Vec<_>>(), &one, &one, 0.9, false, None).unwrap_err().to_string();
    assert!(error.starts_with("sgd: state 1: want f32, got bf16"), "{error}");
}
