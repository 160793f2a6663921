//! Dynamic loss scaling: scaled steps against unscaled ones, skipped overflows, growth and backoff.

use super::optimizer::{of, scalar, tensors};
use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::adamw::{AdamWParam, AdamWRule, adamw};
use upres::ops::clip_scale::clip_scale;
use upres::ops::common::bias_correction::bias_correction;
use upres::ops::grad_norm::grad_norm;
use upres::ops::loss_scale::{INITIAL_SCALE, LossScaleRule, loss_scale, loss_scale_state};
use upres::ops::scaled_seed::scaled_seed;
use upres::ops::sgd::{SgdParam, sgd};
use upres::tensor::elementwise;
use upres::tensor::{DType, Tensor};

/// Number of steps; good steps and applied steps before the first; growth interval; every how many steps one overflows
/// (0: none).
const CASES: &[Case] = &[
    case("no_step", &[0, 0, 0, 2000, 0]),          // the state as it begins
    case("one", &[1, 0, 0, 2000, 0]),              // nothing moves but the counts
    case("first_overflows", &[3, 0, 0, 2000, 3]),  // the first step is skipped: twice the corrections of step 1
    case("growth", &[17, 0, 0, 4, 0]),             // the step at the interval uses the scale before it grows
    case("overflows", &[40, 0, 0, 3, 5]), // counts begin anew: grows in between, and never after less than three steps
    case("ceiling", &[14, 0, 0, 1, 0]),   // grows at every step, until the largest scale
    case("floor", &[24, 0, 0, 2, 1]),     // overflows at every step, until the smallest scale
    case("recipe", &[4, 1998, 19_998, 2000, 0]), // the default interval, far into a stage
    case("longest", &[3, 0, 16_777_214, 2000, 0]), // the count of steps at the end of f32's integers
];

const BETAS: [f64; 2] = [0.9, 0.999];
const MAX_NORM: f32 = 3.0;

fn rule(case: &Case) -> LossScaleRule {
    LossScaleRule { interval: case.dims[3] as u32, ..LossScaleRule::default() }
}

/// The gradient norms of a case, over sixty orders of magnitude, so that some are clipped and some vanish. Overflows
/// take turns between the kinds (infinity, NaN).
fn norms(case: &Case) -> Vec<f32> {
    let (steps, every) = (case.dims[0], case.dims[4]);
    let exponents = uniform(1, steps, -30.0, 30.0);
    let overflow = |i: usize| every > 0 && i.is_multiple_of(every);
    let one = |i: usize| match i / every.max(1) % 2 {
        _ if !overflow(i) => 10f32.powf(exponents[i]),
        0 => f32::INFINITY,
        _ => f32::NAN,
    };
    (0..steps).map(one).collect()
}

fn start(device: &Device, case: &Case) -> Result<Tensor> {
    Tensor::from_slice(device, &[3], &[INITIAL_SCALE, case.dims[1] as f32, case.dims[2] as f32])
}

/// Returns for every step: grad_scale, norm, correction, state, seed.
fn run(device: &Device, case: &Case, max_norm: f32) -> Result<Vec<Tensor>> {
    let (mut state, mut out) = (start(device, case)?, Vec::new());
    for norm in norms(case) {
        let (mut norm, mut correction) = (scalar(device, norm)?, Tensor::from_slice(device, &[2], &[0.0f32; 2])?);
        out.push(loss_scale(&mut norm, &mut state, &mut correction, BETAS, max_norm, &rule(case))?);
        let mut after = Tensor::empty(device, &[3], DType::F32)?;
        elementwise::copy(&mut after, &state)?;
        out.extend([norm, correction, after, scaled_seed(&state, 0.3)?]);
    }
    out.push(state);
    Ok(out)
}

#[test]
fn equals_the_definition() {
    for (case, max_norm) in CASES.iter().flat_map(|case| [(case, MAX_NORM), (case, f32::INFINITY)]) {
        // All devices agree to one unit in the last place: `powf` of the corrections is the device's own, all else is
        // equal to the bit.
        let got = everywhere_within(1.2e-7, 0.0, |dev| run(dev, case, max_norm));
        let rule = rule(case);
        let (mut scale, mut good, mut applied) = (f64::from(INITIAL_SCALE), case.dims[1] as u32, case.dims[2] as u64);
        for (i, (&norm, got)) in norms(case).iter().zip(got.chunks(5)).enumerate() {
            let what = |name: &str| format!("{}, limit {max_norm}, step {i}: {name}", case.name);
            let correction = BETAS.map(|b| 1.0 - b.powf((applied + 1) as f64));
            assert_close(&what("correction"), &got[2].f32s(), &correction, 0.0, 1e-7);
            assert!(got[2].f32s().iter().all(|c| c.is_normal()));
            let norm = f64::from(norm);
            let (mut want, mut factor) = (norm, f64::NAN);
            if norm.is_finite() {
                want = norm / scale;
                factor = (f64::from(max_norm) / (want + 1e-6)).min(1.0) / scale;
                (good, applied) = (good + 1, (applied + 1).min(1 << 24));
                if good == rule.interval {
                    (scale, good) = ((scale * f64::from(rule.growth)).min(f64::from(rule.max)), 0);
                }
            } else {
                (scale, good) = ((scale * f64::from(rule.backoff)).max(f64::from(rule.min)), 0);
            }
            // A norm may vanish below f32's smallest normal number.
            assert_close(&what("norm"), &got[1].f32s(), &[want], 1e-45, 1e-7);
            assert_close(&what("grad_scale"), &got[0].f32s(), &[factor], 0.0, 3e-7);
            assert_eq!(got[3].f32s(), [scale as f32, good as f32, applied as f32], "{}", what("state"));
            assert_eq!(got[4].f32s(), [0.3 * scale as f32], "{}", what("seed"));
        }
        assert_eq!(got.last().unwrap().f32s(), [scale as f32, good as f32, applied as f32], "{}", case.name);
        match case.name {
            "ceiling" => assert_eq!(scale, f64::from(rule.max)),
            "floor" => assert_eq!((scale, applied), (f64::from(rule.min), 0)),
            "recipe" => assert_eq!((scale, good), (131_072.0, 2)),
            _ => {}
        }
    }
}

/// Elements of the parameters that the steps below train.
const PARAMETERS: Case = case("parameters", &[33, 7, 0, 16_390]);
const RULE: AdamWRule = AdamWRule { betas: BETAS, eps: 1e-8 };
const LR: f32 = 0.01;
/// Number of steps; step [`OVERFLOWS`] of them overflows.
const STEPS: usize = 5;
const OVERFLOWS: usize = 2;

/// Parameters and state of both optimizers.
struct Trained {
    lists: [Vec<Tensor>; 5],
}

impl Trained {
    fn new(device: &Device) -> Result<Trained> {
        let values = || tensors(device, &PARAMETERS, 1, 1.0);
        let zeros = || tensors(device, &PARAMETERS, 1, 0.0);
        Ok(Trained { lists: [values()?, zeros()?, values()?, zeros()?, zeros()?] })
    }

    fn step(&mut self, grads: &[Tensor], grad_scale: &Tensor, correction: &Tensor) -> Result<()> {
        let lr = scalar(grad_scale.device(), LR)?;
        let [a, velocity, b, mean, square] = &mut self.lists;
        let each = a.iter_mut().zip(grads).zip(velocity);
        let row = |((value, grad), momentum)| SgdParam { value, grad, momentum, weight_decay: 0.1 };
        sgd(&mut each.map(row).collect::<Vec<_>>(), &lr, grad_scale, 0.9, false, None)?;
        let each = b.iter_mut().zip(grads).zip(mean.iter_mut().zip(square));
        let row = |((value, grad), (mean, square))| AdamWParam { value, grad, mean, square, weight_decay: 0.1 };
        adamw(&mut each.map(row).collect::<Vec<_>>(), &lr, grad_scale, correction, RULE, None)
    }

    /// Appends copies of all values and state.
    fn copy_to(&self, out: &mut Vec<Tensor>) -> Result<()> {
        for t in self.lists.iter().flatten() {
            let mut copy = Tensor::empty(t.device(), t.shape(), DType::F32)?;
            elementwise::copy(&mut copy, t)?;
            out.push(copy);
        }
        Ok(())
    }
}

/// The gradients of a step, multiplied by `scale`. In the step that overflows one element is infinite.
fn gradients(device: &Device, step: usize, scale: f32, overflows: bool) -> Result<Vec<Tensor>> {
    let each = PARAMETERS.dims.iter().enumerate();
    let one = |(i, &n): (usize, &usize)| {
        let mut g: Vec<f32> = of(2 + step as u64, i, n).iter().map(|g| scale * g).collect();
        if overflows && i == 1 {
            g[n - 1] = f32::INFINITY;
        }
        Tensor::from_slice(device, &[n], &g)
    };
    each.map(one).collect()
}

/// Takes steps with scaled gradients; returns after each the norm, the scale's state, and all of [`Trained`].
fn scaled_steps(device: &Device) -> Result<Vec<Tensor>> {
    let (mut trained, mut state, mut out) = (Trained::new(device)?, loss_scale_state(device, 1024.0)?, Vec::new());
    let mut correction = Tensor::zeros(device, &[2], DType::F32)?;
    let rule = LossScaleRule { interval: 2, ..LossScaleRule::default() };
    for (step, scale) in [1024.0, 1024.0, 2048.0, 1024.0, 1024.0].into_iter().enumerate() {
        let grads = gradients(device, step, scale, step == OVERFLOWS)?;
        let mut norm = grad_norm(device, &grads.iter().collect::<Vec<_>>())?;
        let grad_scale = loss_scale(&mut norm, &mut state, &mut correction, BETAS, MAX_NORM, &rule)?;
        trained.step(&grads, &grad_scale, &correction)?;
        let mut after = Tensor::empty(device, &[3], DType::F32)?;
        elementwise::copy(&mut after, &state)?;
        out.extend([norm, after]);
        trained.copy_to(&mut out)?;
    }
    Ok(out)
}

/// Takes the same steps without scaling and without the one that overflows; returns the norm and all of [`Trained`].
fn plain_steps(device: &Device) -> Result<Vec<Tensor>> {
    let (mut trained, mut out) = (Trained::new(device)?, Vec::new());
    for (applied, step) in (0..STEPS).filter(|step| *step != OVERFLOWS).enumerate() {
        let grads = gradients(device, step, 1.0, false)?;
        let norm = grad_norm(device, &grads.iter().collect::<Vec<_>>())?;
        let correction = Tensor::from_slice(device, &[2], &bias_correction(BETAS, applied as u64 + 1))?;
        trained.step(&grads, &clip_scale(&norm, MAX_NORM)?, &correction)?;
        out.push(norm);
        trained.copy_to(&mut out)?;
    }
    Ok(out)
}

/// An overflow skips its own step only: no parameter or state moves, and the step is not counted. On every device every
/// other step equals, to the bit, the step with unscaled gradients.
#[test]
fn an_overflow_skips_one_step() {
    everywhere(scaled_steps);
    everywhere(plain_steps);
    let mut devices = vec![("cpu", Device::cpu())];
    devices.extend(gpus().into_iter().flat_map(|(name, list)| list.into_iter().map(move |device| (name, device))));
    for (name, device) in devices {
        let all = |steps: Vec<Tensor>| steps.iter().map(|t| t.to_vec::<f32>().unwrap()).collect::<Vec<_>>();
        let (scaled, plain) = (all(scaled_steps(&device).unwrap()), all(plain_steps(&device).unwrap()));
        let width = 1 + 5 * PARAMETERS.dims.len();
        let scaled: Vec<_> = scaled.chunks(width + 1).collect();
        let states: Vec<_> = scaled.iter().map(|step| &step[1][..]).collect();
        let [b, c] = [[2048.0, 0.0, 2.0], [1024.0, 0.0, 2.0]];
        assert_eq!(states, [[1024.0, 1.0, 1.0], b, c, [1024.0, 1.0, 3.0], [2048.0, 0.0, 4.0]], "{name}");
        assert!(!scaled[OVERFLOWS][0][0].is_finite(), "{name}");
        assert_eq!(scaled[OVERFLOWS][2..], scaled[OVERFLOWS - 1][2..], "{name}: the step moves something");
        let applied = scaled.iter().enumerate().filter(|(step, _)| *step != OVERFLOWS).map(|(_, s)| s);
        for (i, (got, want)) in applied.zip(plain.chunks(width)).enumerate() {
            assert_eq!(got[0], want[0], "{name}, applied step {i}: norm");
            assert!(want[0][0] > MAX_NORM, "clipping is tested too");
            assert!(got[2..] == want[1..], "{name}, applied step {i}: not the step of unscaled gradients");
        }
    }
}

/// Finite gradients whose norm exceeds f32 count as an overflow.
#[test]
fn a_norm_beyond_f32_is_an_overflow() {
    let got = everywhere(|dev| {
        let grads = tensors(dev, &PARAMETERS, 1, 3e38)?;
        let mut norm = grad_norm(dev, &grads.iter().collect::<Vec<_>>())?;
        let (mut state, mut correction) = (loss_scale_state(dev, 8.0)?, Tensor::zeros(dev, &[2], DType::F32)?);
        let rule = LossScaleRule::default();
        let scale = loss_scale(&mut norm, &mut state, &mut correction, BETAS, 1.0, &rule)?;
        Ok(vec![scale, norm, state])
    });
    assert!(got[0].f32s()[0].is_nan());
    assert_eq!((got[1].f32s(), got[2].f32s()), (vec![f32::INFINITY], vec![4.0, 0.0, 0.0]));
}

/// Dividing a finite norm by a scale below 1 is no overflow: the step is clipped, not skipped.
#[test]
fn an_unscaled_norm_does_not_overflow() {
    let got = everywhere(|dev| {
        let (mut norm, mut correction) = (scalar(dev, 3e38)?, Tensor::zeros(dev, &[2], DType::F32)?);
        let mut state = loss_scale_state(dev, 0.25)?;
        let rule = LossScaleRule { min: 0.125, ..LossScaleRule::default() };
        let scale = loss_scale(&mut norm, &mut state, &mut correction, BETAS, 35.0, &rule)?;
        Ok(vec![scale, norm, state])
    });
    assert_close("grad_scale", &got[0].f32s(), &[35.0 / f64::from(f32::MAX) / 0.25], 0.0, 1e-6);
    assert_eq!((got[1].f32s(), got[2].f32s()), (vec![f32::MAX], vec![0.25, 1.0, 1.0]));
}

/// Growth and backoff of 1 give a fixed scale: overflows are skipped, the scale stays.
#[test]
fn a_scale_may_be_fixed() {
    let rule = LossScaleRule { growth: 1.0, backoff: 1.0, interval: 1, ..LossScaleRule::default() };
    let got = everywhere(|dev| {
        let (mut state, mut correction) = (loss_scale_state(dev, 128.0)?, Tensor::zeros(dev, &[2], DType::F32)?);
        for norm in [1.0, f32::NAN, 2.0, f32::INFINITY, 3.0] {
            loss_scale(&mut scalar(dev, norm)?, &mut state, &mut correction, BETAS, 1.0, &rule)?;
        }
        Ok(vec![state])
    });
    assert_eq!(got[0].f32s(), [128.0, 0.0, 3.0]);
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let zeros = |n: usize| Tensor::zeros(&dev, &[n], DType::F32).unwrap();
    let whole = |n: usize| Tensor::zeros(&dev, &[n], DType::I32).unwrap();
    let of = |mut norm: Tensor, mut state: Tensor, mut correction: Tensor, betas, max_norm, rule| {
        let refused = loss_scale(&mut norm, &mut state, &mut correction, betas, max_norm, &rule);
        refused.map(drop).unwrap_err().to_string()
    };
    let rule = LossScaleRule::default();
    let error = of(zeros(2), zeros(3), zeros(2), BETAS, 1.0, rule);
    assert!(error.starts_with("loss_scale: norm: want [1]"), "{error}");
    let error = of(zeros(1), zeros(2), zeros(2), BETAS, 1.0, rule);
    assert!(error.starts_with("loss_scale: state: want [3]"), "{error}");
    let error = of(zeros(1), zeros(3), zeros(1), BETAS, 1.0, rule);
    assert!(error.starts_with("loss_scale: correction: want [2]"), "{error}");
    for (norm, state, correction, name) in [
        (whole(1), zeros(3), zeros(2), "norm"),
        (zeros(1), whole(3), zeros(2), "state"),
        (zeros(1), zeros(3), whole(2), "correction"),
    ] {
        let error = of(norm, state, correction, BETAS, 1.0, rule);
        assert!(error.starts_with(&format!("loss_scale: {name}: want f32")), "{error}");
    }
    let (nan, infinite) = (f32::NAN, f32::INFINITY);
    for (rule, name) in [
        ([nan, infinite, 0.5].map(|growth| LossScaleRule { growth, ..rule }), "growth"),
        ([nan, 0.0, 1.5].map(|backoff| LossScaleRule { backoff, ..rule }), "backoff"),
        ([0, (1 << 24) + 1, u32::MAX].map(|interval| LossScaleRule { interval, ..rule }), "interval"),
        ([nan, 0.0, -1.0].map(|min| LossScaleRule { min, ..rule }), "min"),
        ([nan, infinite, 0.5].map(|max| LossScaleRule { max, ..rule }), "m"), // the last of them is below min
    ] {
        for rule in rule {
            let error = of(zeros(1), zeros(3), zeros(2), BETAS, 1.0, rule);
            assert!(error.starts_with(&format!("loss_scale: {name}")), "{error}");
        }
    }
    for betas in [[1.0, 0.9], [0.9, -0.1], [f64::NAN, 0.9]] {
        let error = of(zeros(1), zeros(3), zeros(2), betas, 1.0, rule);
        assert!(error.starts_with("loss_scale: betas"), "{error}");
    }
    for max_norm in [0.0, -1.0, nan] {
        let error = of(zeros(1), zeros(3), zeros(2), BETAS, max_norm, rule);
        assert!(error.starts_with("loss_scale: max_norm"), "{error}");
    }
    for initial in [0.0, -1.0, nan, infinite, 1e-40] {
        let error = loss_scale_state(&dev, initial).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("loss_scale: initial scale"), "{error}");
    }
    let error = scaled_seed(&zeros(1), 1.0).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("scaled_seed: state: want [3]"), "{error}");
    let error = scaled_seed(&whole(3), 1.0).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("scaled_seed: state: want f32"), "{error}");
}
