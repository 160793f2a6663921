//! Batch norm in training and frozen mode, with an optional residual and ReLU, against its definition and torch.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::batch_norm_relu::{BatchNormRelu, BnMode, batch_norm_relu};
use upres::ops::max_pool::max_pool;
use upres::tape::{Param, Role, Tape};
use upres::tensor::{DType, Tensor};

const EPS: f32 = 1e-5;

/// The forward pass in f64, with the intermediates of the gradients: normalised x, 1 / sqrt(var + eps), mean and
/// variance.
struct Forward {
    y: Vec<f64>,
    normal: Vec<f64>,
    rstd: Vec<f64>,
    mean: Vec<f64>,
    var: Vec<f64>,
}

fn forward(p: &Problem, x: &[f64], gamma: &[f64], beta: &[f64], residual: &[f64]) -> Forward {
    let (c, m) = (p.shape[3], p.pixels() as f64);
    let (mut mean, mut var) = (vec![0.0; c], vec![0.0; c]);
    x.iter().enumerate().for_each(|(i, v)| mean[i % c] += v / m);
    x.iter().enumerate().for_each(|(i, v)| var[i % c] += (v - mean[i % c]).powi(2) / m);
    if p.mode == BnMode::Frozen {
        (mean, var) = (wide(&p.mean), wide(&p.var));
    }
    let rstd: Vec<f64> = var.iter().map(|v| 1.0 / (v + f64::from(EPS)).sqrt()).collect();
    let normal: Vec<f64> = x.iter().enumerate().map(|(i, v)| (v - mean[i % c]) * rstd[i % c]).collect();
    let y = normal.iter().enumerate().map(|(i, v)| {
        let y = v * gamma[i % c] + beta[i % c] + residual.get(i).unwrap_or(&0.0);
        if p.relu { y.max(0.0) } else { y }
    });
    Forward { y: y.collect(), normal, rstd, mean, var }
}

/// All outputs of [`Problem::run`] in f64. The ReLU's mask is taken from the op's own `y`, because near 0 rounding
/// decides.
fn reference(p: &Problem, y: &[f32]) -> Vec<Vec<f64>> {
    let (c, m) = (p.shape[3], p.pixels() as f64);
    let (gamma, residual) = (wide(&p.gamma), p.residual.as_deref().map(wide));
    let f = forward(p, &wide(&p.x), &gamma, &wide(&p.beta), residual.as_deref().unwrap_or(&[]));
    let g: Vec<f64> = p.dy.iter().zip(y).map(|(&dy, &y)| if p.relu && y <= 0.0 { 0.0 } else { dy.into() }).collect();
    let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
    for (i, g) in g.iter().enumerate() {
        dgamma[i % c] += g * f.normal[i];
        dbeta[i % c] += g;
    }
    let dx = g.iter().enumerate().map(|(i, g)| {
        let k = i % c;
        let through_statistics = if p.mode == BnMode::Frozen { 0.0 } else { (dbeta[k] + f.normal[i] * dgamma[k]) / m };
        gamma[k] * f.rstd[k] * (g - through_statistics)
    });
    let mut out = vec![f.y, dx.collect()];
    if p.affine {
        out.extend([dgamma, dbeta]);
    }
    out.extend(p.residual.is_some().then_some(g));
    let moved = |old: &[f32], new: Vec<f64>| old.iter().zip(new).map(|(&o, n)| 0.9 * f64::from(o) + 0.1 * n).collect();
    if p.mode == BnMode::Frozen || m == 0.0 {
        out.extend([wide(&p.mean), wide(&p.var)]);
    } else {
        out.push(moved(&p.mean, f.mean));
        out.push(moved(&p.var, f.var.iter().map(|v| v * m / (m - 1.0)).collect()));
    }
    out
}

/// N, H, W, C.
const CASES: &[Case] = &[
    case("empty", &[0, 4, 4, 8]),         // no image: no chunk at all
    case("no_pixels", &[2, 0, 3, 8]),     // images without pixels
    case("one", &[1, 1, 1, 5]),           // one value a channel: training refuses, frozen works
    case("two", &[2, 1, 1, 3]),           // the smallest batch with a variance
    case("one_channel", &[2, 9, 7, 1]),   // 128 pixels to a row of lanes
    case("tail", &[3, 5, 7, 33]),         // channels and pixels that fill no vector
    case("rgb", &[2, 31, 29, 3]),         // few channels: rows of lanes hold many pixels
    case("chunks", &[2, 61, 67, 24]),     // several chunks, the last one ends inside a row of lanes
    case("vectors", &[3, 7, 9, 40]),      // channels that are whole vectors, but fill no power of two
    case("one_vector", &[3, 40, 41, 4]),  // a vector of channels a row
    case("folds", &[3, 31, 37, 128]),     // more chunks than the kernels' fold has threads
    case("wide", &[1, 3, 13, 2100]),      // more channels than the limit of a row of lanes, not a multiple of a vector
    case("large_mean", &[4, 16, 16, 12]), // a one-pass variance gives garbage: x = 0.1 u + 1000
    case("constant", &[2, 9, 9, 6]),      // variance 0: nothing but eps under the root
    case("tiny", &[2, 8, 8, 16]),         // variance far below eps
    case("res5", &[2, 14, 14, 2048]),     // many channels, few pixels: R50's last stage
    case("stem", &[2, 224, 224, 64]),     // R50's stem at 448
    case("res2", &[2, 112, 112, 256]),    // the largest of the paper's recipe at 2 images
];

/// Inputs are `offset + scale u`, u in (-1, 1).
fn affine(case: &Case) -> (f32, f32) {
    match case.name {
        "large_mean" => (0.1, 1e3),
        "constant" => (0.0, 3.3),
        "tiny" => (1e-6, 0.0),
        _ => (1.0, 0.0),
    }
}

fn is_large(case: &Case) -> bool {
    case.dims.iter().product::<usize>() > 1_000_000
}

/// Whether a case runs on every device: all small cases do, and of the large ones `stem`.
fn is_everywhere(case: &Case) -> bool {
    !is_large(case) || case.name == "stem"
}

/// Like [`everywhere`], with looser tolerances where a channel has two values: there dx is the rounding left over from
/// terms that cancel, about 1e-6 of them, and devices agree only on its size.
fn on_devices(case: &Case, p: &Problem) -> Vec<Output> {
    let of_max = if case.name == "two" { 0.1 } else { 1e-6 };
    everywhere_within(1e-5, of_max, |dev| p.run(dev))
}

const TRAIN: BnMode = BnMode::Train { momentum: 0.1 };

#[derive(Clone)]
struct Problem {
    shape: [usize; 4],
    x: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    var: Vec<f32>,
    residual: Option<Vec<f32>>,
    dy: Vec<f32>,
    mode: BnMode,
    relu: bool,
    /// Gamma and beta are trained.
    affine: bool,
    /// dy and x are also held elsewhere during the backward pass, so that neither can be overwritten.
    shared: bool,
}

impl Problem {
    fn new(case: &Case, mode: BnMode, residual: bool, relu: bool) -> Problem {
        let shape: [usize; 4] = case.dims.try_into().unwrap();
        let (n, c): (usize, _) = (shape.iter().product(), shape[3]);
        let (scale, offset) = affine(case);
        Problem {
            shape,
            x: uniform(1, n, -1.0, 1.0).iter().map(|u| offset + scale * u).collect(),
            gamma: uniform(2, c, 0.2, 1.8),
            beta: uniform(3, c, -0.4, 0.6),
            mean: uniform(4, c, offset - 0.3, offset + 0.3),
            var: uniform(5, c, 0.1, 2.1),
            residual: residual.then(|| uniform(6, n, -1.0, 1.0)),
            dy: uniform(7, n, -1.0, 1.0),
            mode,
            relu,
            affine: true,
            shared: false,
        }
    }

    /// Moves the residual where the ReLU's input is near 0: there is no slope.
    fn away_from_the_kink(mut self) -> Problem {
        let (gamma, beta) = (wide(&self.gamma), wide(&self.beta));
        let linear = forward(&Problem { relu: false, ..self.clone() }, &wide(&self.x), &gamma, &beta, &[]).y;
        for (r, y) in self.residual.as_mut().expect("a residual").iter_mut().zip(linear) {
            *r += if (f64::from(*r) + y).abs() < 0.01 { 0.05 } else { 0.0 };
        }
        self
    }

    fn pixels(&self) -> usize {
        self.shape[..3].iter().product()
    }

    /// y, dx, dgamma, dbeta (if trained), dresidual (if there is one), running mean, running variance.
    fn run(&self, device: &Device) -> Result<Vec<Tensor>> {
        self.run_stored(device, |data| Tensor::from_slice(device, &self.shape, data))
    }

    /// Like `run`, with input maps made by `map`.
    fn run_stored(&self, device: &Device, map: impl Fn(&[f32]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
        let c = self.shape[3];
        let param = |name: &str, data: &[f32]| -> Result<Param> {
            let p = Param::new(name, Role::Norm, Tensor::from_slice(device, &[c], data)?);
            if self.affine && matches!(name, "gamma" | "beta") {
                p.set_grad(Some(Tensor::zeros(device, &[c], DType::F32)?))?;
            }
            Ok(p)
        };
        let (gamma, beta) = (param("gamma", &self.gamma)?, param("beta", &self.beta)?);
        let (mean, var) = (param("mean", &self.mean)?, param("var", &self.var)?);
        let mut tape = Tape::new(device);
        let x0 = tape.leaf(map(&self.x)?);
        let r = match &self.residual {
            Some(r) => Some(tape.leaf(map(r)?)),
            None => None,
        };
        let (g, b) = (tape.param(&gamma), tape.param(&beta));
        let x = max_pool(&mut tape, &x0, 1, 1, 0)?; // a copy that only the op under test holds
        let (mode, residual, relu) = (self.mode, r.as_ref(), self.relu);
        let op = BatchNormRelu { gamma: &g, beta: &b, mean: &mean, var: &var, mode, eps: EPS, residual, relu };
        let y = batch_norm_relu(&mut tape, &x, op)?;
        let mut out = vec![y.value().clone()];
        let dy = map(&self.dy)?;
        let held = self.shared.then(|| [dy.clone(), x.value().clone()]);
        let contents = |held: &[Tensor; 2]| device.has_data().then(|| held.each_ref().map(floats));
        let before = held.as_ref().map(contents);
        drop((x, g, b));
        let grads = tape.backward(vec![(y, dy)])?;
        out.push(grads.get(&x0).expect("dx").clone());
        if self.affine {
            out.push(gamma.grad().clone().expect("dgamma"));
            out.push(beta.grad().clone().expect("dbeta"));
        }
        out.extend(r.map(|r| grads.get(&r).expect("dresidual").clone()));
        assert!(held.as_ref().map(contents) == before, "somebody else's tensor was written over");
        drop(held); // at the same moment on every device
        out.push(mean.value());
        out.push(var.value());
        Ok(out)
    }
}

fn names(p: &Problem) -> Vec<&'static str> {
    let mut names = vec!["y", "dx"];
    names.extend(p.affine.then_some(["dgamma", "dbeta"]).into_iter().flatten());
    names.extend(p.residual.as_ref().map(|_| "dresidual"));
    names.extend(["running mean", "running variance"]);
    names
}

fn check(case: &Case, p: &Problem) {
    let label = format!("{}, {:?}, residual {}, relu {}", case.name, p.mode, p.residual.is_some(), p.relu);
    let got: Vec<Output> = if is_everywhere(case) && (!is_large(case) || p.mode == TRAIN) {
        on_devices(case, p)
    } else {
        p.run(&Device::cpu()).unwrap().iter().map(Output::of).collect()
    };
    let (want, names) = (reference(p, &got[0].f32s()), names(p));
    assert_eq!(got.len(), names.len());
    let rstd = forward(p, &wide(&p.x), &wide(&p.gamma), &wide(&p.beta), &[]).rstd;
    let deviations = rstd.iter().fold(1.0f64, |a, &b| a.max(b));
    // The mean is kept in f32: half a unit of its last digit, divided by the deviation, is the error of a normalised
    // value.
    let abs = 1e-5 + 2.0 * f64::from(affine(case).1) * 2f64.powi(-24) * deviations;
    let sum = (p.pixels() as f64).sqrt(); // rounding errors of a sum that cancels add like a random walk
    for ((name, got), want) in names.iter().zip(&got).zip(&want) {
        let (abs, rel) = match *name {
            "y" => (abs, 1e-4),
            "dx" => (abs * deviations, 1e-4),
            "dgamma" => (abs * sum.max(1.0), 1e-4),
            "dbeta" => (1e-5 * sum.max(1.0), 1e-4),
            "dresidual" => (0.0, 0.0),
            _ => (1e-6, 1e-6),
        };
        assert_close(&format!("{label}: {name}"), &got.f32s(), want, abs, rel);
    }
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        for mode in [TRAIN, BnMode::Frozen] {
            if mode == TRAIN && case.name == "one" {
                continue;
            }
            let both = [(false, false), (false, true), (true, false), (true, true)];
            for (residual, relu) in if is_large(case) { &both[3..] } else { &both[..] } {
                let p = Problem::new(case, mode, *residual, *relu);
                check(case, &p);
                if !is_large(case) {
                    check(case, &Problem { affine: false, ..p });
                }
            }
        }
    }
}

#[test]
fn gradients_are_the_slopes() {
    for case in CASES.iter().filter(|c| c.dims.iter().product::<usize>() < 100_000 && affine(c) == (1.0, 0.0)) {
        for mode in [TRAIN, BnMode::Frozen] {
            if mode == TRAIN && matches!(case.name, "one" | "two") {
                continue; // two values: the slope of their normal form is that of a sign
            }
            let p = Problem::new(case, mode, true, true).away_from_the_kink();
            let got = p.run(&Device::cpu()).unwrap();
            let inputs = [&p.x, &p.gamma, &p.beta, p.residual.as_ref().unwrap()];
            let wides = inputs.map(|x| wide(x));
            for i in 0..4 {
                let loss = |v: &[f64]| -> f64 {
                    let input = |k: usize| if k == i { v } else { &wides[k][..] };
                    let y = forward(&p, input(0), input(1), input(2), input(3)).y;
                    y.iter().zip(&p.dy).map(|(y, &dy)| y * f64::from(dy)).sum()
                };
                let what = format!("{}, {mode:?}, {}", case.name, names(&p)[i + 1]);
                let abs = 1e-5 * (p.pixels() as f64).sqrt().max(1.0);
                assert_gradient(&what, inputs[i], got[i + 1].f32s(), abs, 1e-4, loss);
            }
        }
    }
}

/// dy and x are overwritten only if nobody else holds them, and the result is the same.
#[test]
fn shared_tensors_stay_as_they_are() {
    for case in CASES.iter().filter(|c| !is_large(c) && c.name != "one") {
        for (mode, residual) in [(TRAIN, false), (TRAIN, true), (BnMode::Frozen, false), (BnMode::Frozen, true)] {
            let p = Problem::new(case, mode, residual, true);
            let alone = p.run(&Device::cpu()).unwrap().iter().map(Output::of).collect::<Vec<_>>();
            let shared = Problem { shared: true, ..p };
            assert!(on_devices(case, &shared) == alone, "{}", case.name);
        }
    }
}

/// torch's ReLU: no gradient where the output is exactly 0, and NaN goes through.
#[test]
fn kinks_and_nan() {
    let mut p = Problem::new(&case("y_is_0_everywhere", &[1, 4, 4, 8]), TRAIN, true, true);
    p.gamma.fill(0.0);
    p.beta.fill(0.0);
    p.residual = Some(vec![0.0; 128]);
    for out in &everywhere(|dev| p.run(dev))[..5] {
        assert!(out.f32s().iter().all(|&v| v == 0.0));
    }
    p.residual = Some(vec![f32::NAN; 128]);
    let out = everywhere(|dev| p.run(dev));
    assert!(out[0].f32s().iter().all(|v| v.is_nan()), "the ReLU hides NaN");
}

/// A NaN spoils the statistics of its channel in training, and only its own element with frozen statistics.
#[test]
fn nan_stays_in_its_channel() {
    for shape in [&[2, 9, 9, 5], &[2, 9, 9, 8]] {
        let c = shape[3];
        for (mode, spoiled) in [(TRAIN, 2 * 9 * 9), (BnMode::Frozen, 1)] {
            let mut p = Problem::new(&case("nan", shape), mode, false, true);
            p.x[3 * c + 1] = f32::NAN;
            let out = everywhere(|dev| p.run(dev));
            let y = out[0].f32s();
            assert!(y.iter().enumerate().all(|(i, v)| !v.is_nan() || i % c == 1), "{mode:?}: in another channel");
            assert_eq!(y.iter().filter(|v| v.is_nan()).count(), spoiled, "{mode:?}");
        }
    }
}

/// One value far from all others does not cost them digits, whether it is the first, a middle or the last one of its
/// channel.
#[test]
fn one_value_may_lie_far_away() {
    for case in CASES.iter().filter(|c| matches!(c.name, "tail" | "folds")) {
        let p = Problem::new(case, TRAIN, false, false); // no ReLU: many y lie near 0, where rounding decides
        let c = p.shape[3];
        for pixel in [0, p.pixels() / 2, p.pixels() - 1] {
            let mut p = p.clone();
            p.x[pixel * c..][..c].fill(1000.0);
            let (got, names) = (everywhere(|dev| p.run(dev)), names(&p));
            for ((name, got), want) in names.iter().zip(&got).zip(&reference(&p, &got[0].f32s())) {
                let largest = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
                assert_close(&format!("{}: {name}", case.name), &got.f32s(), want, 1e-5 * largest, 1e-4);
            }
        }
    }
}

/// y, dx and dresidual are rounded once; statistics and the gradients of gamma and beta are sums in f32.
#[test]
fn in_16_bits() {
    for shape in [&[3, 5, 7, 33], &[2, 14, 15, 64]] {
        for (mode, residual) in [(TRAIN, false), (TRAIN, true), (BnMode::Frozen, false), (BnMode::Frozen, true)] {
            let p = Problem::new(&case("halves", shape), mode, residual, true);
            for shared in [false, true] {
                let p = Problem { shared, ..p.clone() };
                in_halves(1.0, |dev, halves| p.run_stored(dev, |data| Ok(halves.tensor(dev, &p.shape, data))));
            }
        }
    }
}

#[test]
fn one_value_a_channel_cannot_train() {
    let p = Problem::new(&CASES[2], TRAIN, false, true);
    assert_eq!(p.shape, [1, 1, 1, 5]);
    let error = p.run(&Device::cpu()).unwrap_err().to_string();
    assert!(error.contains("freeze batch norm"), "{error}");
}

#[test]
fn parameters_of_another_type_are_refused() {
    let dev = Device::cpu();
    for (bad, name) in ["gamma", "beta", "running mean", "running variance"].into_iter().enumerate() {
        let mut tape = Tape::new(&dev);
        let tensor = |i| Tensor::zeros(&dev, &[4], if i == bad { DType::I32 } else { DType::F32 }).unwrap();
        let x = tape.leaf(Tensor::zeros(&dev, &[1, 2, 2, 4], DType::F32).unwrap());
        let (g, b) = (tape.leaf(tensor(0)), tape.leaf(tensor(1)));
        let (mean, var) = (Param::new("m", Role::Statistic, tensor(2)), Param::new("v", Role::Statistic, tensor(3)));
        let (mode, residual, relu) = (BnMode::Frozen, None, true);
        let op = BatchNormRelu { gamma: &g, beta: &b, mean: &mean, var: &var, mode, eps: EPS, residual, relu };
        let out = batch_norm_relu(&mut tape, &x, op);
        let error = out.unwrap_err().to_string();
        assert!(error.starts_with(&format!("batch_norm_relu: {name}: want f32")), "{error}");
    }
}

#[test]
fn frozen_batch_norm_saves_no_input() {
    let dev = Device::cpu();
    let zeros = |shape: &[usize]| Tensor::zeros(&dev, shape, DType::F32).unwrap();
    let param = || Param::new("p", Role::Norm, zeros(&[8]));
    let saved = |mode, relu| {
        let (gamma, beta, mean, var) = (param(), param(), param(), param());
        let mut tape = Tape::new(&dev);
        let (x, g, b) = (tape.leaf(zeros(&[2, 3, 3, 8])), tape.param(&gamma), tape.param(&beta));
        let op = BatchNormRelu { gamma: &g, beta: &b, mean: &mean, var: &var, mode, eps: EPS, residual: None, relu };
        batch_norm_relu(&mut tape, &x, op).unwrap();
        tape.saved_bytes()
    };
    let (map, statistics) = (2 * 3 * 3 * 8 * 4, 2 * 8 * 4);
    assert_eq!(saved(BnMode::Frozen, false), statistics);
    assert_eq!(saved(BnMode::Frozen, true), map + statistics);
    assert_eq!(saved(TRAIN, true), 2 * map + statistics);
}

#[test]
fn as_torch() {
    let file = OpFixture::open("nn_layers");
    for (name, mode) in [("bn_train", TRAIN), ("bn_eval", BnMode::Frozen)] {
        let get = |key: &str| file.f32(&format!("{name}.{key}"));
        let p = Problem {
            shape: [3, 4, 5, 6],
            x: get("x0"),
            gamma: get("param.weight"),
            beta: get("param.bias"),
            mean: get("rm_before"),
            var: get("rv_before"),
            residual: None,
            dy: get("gout"),
            mode,
            relu: false,
            affine: true,
            shared: false,
        };
        let got = everywhere(|dev| p.run(dev));
        for (got, key) in got.iter().zip(["y", "dx0", "dparam.weight", "dparam.bias", "rm_after", "rv_after"]) {
            assert_close(&format!("{name}: {key}"), &got.f32s(), &wide(&get(key)), 1e-5, 1e-4);
        }
    }
}
