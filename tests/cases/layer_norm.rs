//! Layer norm over the last dimension, against its definition and torch.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::layer_norm::layer_norm;
use upres::ops::max_pool::max_pool;
use upres::tape::{Param, Role, Tape};
use upres::tensor::{DType, Tensor};

const EPS: f32 = 1e-5;

/// The forward pass in f64: y, and for the gradients normalised x and 1 / deviation of each row.
fn forward(c: usize, x: &[f64], gamma: &[f64], beta: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut y, mut normal, mut rstd) = (Vec::new(), Vec::new(), Vec::new());
    for row in x.chunks(c.max(1)) {
        let mean = row.iter().sum::<f64>() / c as f64;
        let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
        rstd.push(1.0 / (var + f64::from(EPS)).sqrt());
        for (i, x) in row.iter().enumerate() {
            let v = (x - mean) * rstd[rstd.len() - 1];
            normal.push(v);
            y.push(v * gamma[i] + beta[i]);
        }
    }
    (y, normal, rstd)
}

/// y, dx, dgamma, dbeta.
fn reference(p: &Problem) -> [Vec<f64>; 4] {
    let c = p.channels();
    let gamma = wide(&p.gamma);
    let (y, normal, rstd) = forward(c, &wide(&p.x), &gamma, &wide(&p.beta));
    let (mut dx, mut dgamma, mut dbeta) = (Vec::new(), vec![0.0; c], vec![0.0; c]);
    for (r, rstd) in rstd.iter().enumerate() {
        let (dy, v) = (wide(&p.dy[r * c..][..c]), &normal[r * c..][..c]);
        let g: Vec<f64> = dy.iter().zip(&gamma).map(|(d, g)| d * g).collect();
        let total = g.iter().sum::<f64>() / c as f64;
        let along = g.iter().zip(v).map(|(g, v)| g * v).sum::<f64>() / c as f64;
        for i in 0..c {
            dx.push(rstd * (g[i] - total - v[i] * along));
            dgamma[i] += dy[i] * v[i];
            dbeta[i] += dy[i];
        }
    }
    [y, dx, dgamma, dbeta]
}

/// Any shape; the last dimension is normalised.
const CASES: &[Case] = &[
    case("empty", &[0, 96]),         // no row: the gradients of gamma and beta are 0
    case("no_channels", &[5, 0]),    // nothing at all
    case("one", &[1, 1]),            // variance 0
    case("vector", &[7]),            // a single row without a dimension for rows
    case("tail", &[5, 33]),          // one beyond two vectors, rows that fill no group of four
    case("few", &[3, 5, 11, 4]),     // rows shorter than a vector, several in a warp
    case("three", &[301, 3]),        // no vector at all, more than one chunk
    case("large_mean", &[4, 1024]),  // x = 0.1 u + 1000: a one-pass variance gives 1.5, the answer is 0.003
    case("constant", &[6, 40]),      // x = 1000: variance 0 up to rounding
    case("long", &[3, 4096]),        // the longest rows: beyond what a GPU's thread holds
    case("long_odd", &[2, 2049]),    // the same without vectors
    case("merge", &[2, 7, 7, 1536]), // the widest norm of a Swin-T
    case("stage1", &[2, 28, 28, 96]),
    case("stage4", &[98, 768]),
    case("chunks", &[9000, 96]), // several chunks and blocks of every kernel
];

#[derive(Clone)]
struct Problem {
    shape: Vec<usize>,
    x: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    dy: Vec<f32>,
    /// Whether gamma and beta are trained, whether x has a gradient, and whether dy is also held elsewhere.
    affine: bool,
    dx: bool,
    shared: bool,
}

impl Problem {
    fn new(case: &Case) -> Problem {
        let (n, c) = (case.dims.iter().product(), *case.dims.last().unwrap());
        let (scale, shift) = match case.name {
            "large_mean" => (0.1, 1000.0),
            "constant" => (0.0, 1000.0),
            _ => (1.0, 0.3),
        };
        Problem {
            shape: case.dims.to_vec(),
            x: uniform(1, n, -1.0, 1.0).iter().map(|u| scale * u + shift).collect(),
            gamma: uniform(2, c, 0.5, 1.5),
            beta: uniform(3, c, -1.0, 1.0),
            dy: uniform(4, n, -1.0, 1.0),
            affine: true,
            dx: true,
            shared: false,
        }
    }

    fn channels(&self) -> usize {
        *self.shape.last().unwrap()
    }

    fn rows(&self) -> usize {
        self.x.len() / self.channels().max(1)
    }

    /// y, dx (if it has one), dgamma and dbeta (if trained).
    fn run(&self, dev: &Device) -> Result<Vec<Tensor>> {
        self.run_stored(dev, |data| Ok(tensor(dev, &self.shape, data)))
    }

    fn run_stored(&self, dev: &Device, map: impl Fn(&[f32]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
        let param = |name: &str, data: &[f32]| -> Result<Param> {
            let p = Param::new(name, Role::Norm, tensor(dev, &[data.len()], data));
            if self.affine {
                p.set_grad(Some(Tensor::zeros(dev, &[data.len()], DType::F32)?))?;
            }
            Ok(p)
        };
        let (gamma, beta) = (param("gamma", &self.gamma)?, param("beta", &self.beta)?);
        let mut tape = Tape::new(dev);
        let x = map(&self.x)?;
        let x = if self.dx { tape.leaf(x) } else { tape.constant(x) };
        let (g, b) = (tape.param(&gamma), tape.param(&beta));
        let y = layer_norm(&mut tape, &x, &g, &b, EPS)?;
        let mut out = vec![y.value().clone()];
        let dy = map(&self.dy)?;
        let held = self.shared.then(|| dy.clone());
        let before = held.as_ref().filter(|_| dev.has_data()).map(floats);
        let grads = tape.backward(vec![(y, dy)])?;
        assert!(held.as_ref().filter(|_| dev.has_data()).map(floats) == before, "somebody else's dy was written over");
        drop(held);
        out.extend(grads.get(&x).cloned());
        out.extend([gamma.grad().clone(), beta.grad().clone()].into_iter().flatten());
        Ok(out)
    }
}

fn check(name: &str, p: &Problem, got: &[Output]) {
    let rows = (p.rows() as f64).sqrt().max(1.0); // rounding errors of a sum that cancels add like a random walk
    let (_, _, rstd) = forward(p.channels(), &wide(&p.x), &wide(&p.gamma), &wide(&p.beta));
    let deviations = rstd.iter().fold(1.0f64, |a, &b| a.max(b));
    // The mean is kept in f32: half a unit of its last digit, divided by the deviation, is the error of a normalised
    // value.
    let largest = p.x.iter().fold(0.0f64, |a, &x| a.max(f64::from(x.abs())));
    let abs = 1e-5 + 2.0 * largest * 2f64.powi(-24) * deviations;
    let tolerances = [(abs, 1e-4), (abs * deviations, 1e-4), (abs * rows, 1e-4), (1e-5 * rows, 1e-4)];
    let names = ["y", "dx", "dgamma", "dbeta"];
    for (i, ((want, (abs, rel)), what)) in reference(p).iter().zip(tolerances).zip(names).enumerate() {
        assert_close(&format!("{name}: {what}"), &got[i].f32s(), want, abs, rel);
    }
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let p = Problem::new(case);
        // In a constant row, and beside a mean of 1000, y is only rounding error, which depends on the order of the
        // sum.
        let of_max = match case.name {
            "large_mean" => 1e-3,
            "constant" => 2e-2,
            _ => 1e-6,
        };
        let got = everywhere_within(1e-5, of_max, |dev| p.run(dev));
        check(case.name, &p, &got);
    }
}

/// Gradients that are not wanted are not computed and the others stay the same. A dy that is held elsewhere stays
/// unchanged.
#[test]
fn parts_agree_with_the_whole() {
    for case in CASES.iter().filter(|c| matches!(c.name, "empty" | "tail" | "few" | "stage4")) {
        let whole = Problem::new(case);
        let all = everywhere(|dev| whole.run(dev));
        let shared = Problem { shared: true, ..whole.clone() };
        assert!(everywhere(|dev| shared.run(dev)) == all, "{}: shared dy", case.name);
        for shared in [false, true] {
            let frozen = Problem { affine: false, shared, ..whole.clone() };
            assert!(everywhere(|dev| frozen.run(dev))[..] == all[..2], "{}: frozen", case.name);
            let first = Problem { dx: false, shared, ..whole.clone() };
            let got = everywhere(|dev| first.run(dev));
            assert!(got[0] == all[0] && got[1..] == all[2..], "{}: without dx", case.name);
        }
    }
}

#[test]
fn gradients_are_the_slopes() {
    for case in CASES.iter().filter(|c| matches!(c.name, "vector" | "tail" | "few" | "three" | "stage4")) {
        let p = Problem::new(case);
        let got = p.run(&Device::cpu()).unwrap();
        let inputs = [&p.x, &p.gamma, &p.beta];
        let wides = inputs.map(|x| wide(x));
        for i in 0..3 {
            let loss = |v: &[f64]| -> f64 {
                let input = |k: usize| if k == i { v } else { &wides[k][..] };
                let y = forward(p.channels(), input(0), input(1), input(2)).0;
                y.iter().zip(&p.dy).map(|(y, &dy)| y * f64::from(dy)).sum()
            };
            let what = format!("{}, {}", case.name, ["dx", "dgamma", "dbeta"][i]);
            let abs = 2e-5 * (p.rows() as f64).sqrt().max(1.0); // three channels: 1 / deviation is up to 30
            assert_gradient(&what, inputs[i], got[i + 1].f32s(), abs, 1e-4, loss);
        }
    }
}

/// If one layer is used twice, the gradients of gamma and beta add up.
#[test]
fn a_second_use_adds() {
    let p = Problem::new(&CASES[4]);
    let c = p.channels();
    let twice = everywhere(|dev| {
        let gamma = Param::new("gamma", Role::Norm, tensor(dev, &[c], &p.gamma));
        gamma.set_grad(Some(Tensor::zeros(dev, &[c], DType::F32)?))?;
        let mut tape = Tape::new(dev);
        let x = tape.leaf(tensor(dev, &p.shape, &p.x));
        let (g, b) = (tape.param(&gamma), tape.constant(tensor(dev, &[c], &p.beta)));
        let first = layer_norm(&mut tape, &x, &g, &b, EPS)?;
        let second = layer_norm(&mut tape, &x, &g, &b, EPS)?;
        let dy = || tensor(dev, &p.shape, &p.dy);
        let grads = tape.backward(vec![(first, dy()), (second, dy())])?;
        Ok(vec![grads.get(&x).expect("dx").clone(), gamma.grad().clone().expect("dgamma")])
    });
    let want = reference(&p);
    for (got, want) in twice.iter().zip([&want[1], &want[2]]) {
        let want: Vec<f64> = want.iter().map(|v| 2.0 * v).collect();
        assert_close("twice", &got.f32s(), &want, 1e-4, 1e-4);
    }
}

#[test]
fn nan_stays_in_its_row() {
    for c in [33, 96] {
        let mut p = Problem::new(&case("nan", &[9, 1]));
        p = Problem { shape: vec![9, c], x: uniform(1, 9 * c, -1.0, 1.0), dy: uniform(2, 9 * c, -1.0, 1.0), ..p };
        (p.gamma, p.beta) = (vec![1.0; c], vec![0.0; c]);
        p.x[4 * c + 1] = f32::NAN;
        let out = everywhere(|dev| p.run(dev));
        for map in &out[..2] {
            assert!(map.f32s().iter().enumerate().all(|(i, v)| v.is_nan() == (i / c == 4)), "{c} channels");
        }
    }
}

/// y and dx are rounded once; statistics and the gradients of gamma and beta are sums in f32.
#[test]
fn in_16_bits() {
    for shape in [&[5, 33][..], &[2, 5, 11, 4], &[70, 96], &[3, 2056], &[2, 4096]] {
        let p = Problem::new(&Case { name: "halves", dims: Box::leak(shape.to_vec().into_boxed_slice()) });
        for shared in [false, true] {
            let p = Problem { shared, ..p.clone() };
            in_halves(1.0, |dev, halves| p.run_stored(dev, |data| Ok(halves.tensor(dev, &p.shape, data))));
        }
    }
}

#[test]
fn saves_its_input_without_a_copy() {
    let dev = Device::cpu();
    let zeros = |shape: &[usize]| Tensor::zeros(&dev, shape, DType::F32).unwrap();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(zeros(&[1, 4, 4, 3]));
    let x = max_pool(&mut tape, &x, 1, 1, 0).unwrap();
    let before = tape.saved_bytes();
    let (g, b) = (tape.constant(zeros(&[3])), tape.constant(zeros(&[3])));
    layer_norm(&mut tape, &x, &g, &b, EPS).unwrap();
    assert_eq!(tape.saved_bytes() - before, 4 * 4 * 3 * 4 + 2 * 16 * 4);
    assert!(!x.value().is_unique(), "a copy was saved");
}

#[test]
fn bad_arguments() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let mut var = |shape: &[usize], dtype| tape.leaf(Tensor::zeros(&dev, shape, dtype).unwrap());
    let (x, scalar, ints) = (var(&[5, 4], DType::F32), var(&[], DType::F32), var(&[5, 4], DType::I32));
    let (good, long, wrong) = (var(&[4], DType::F32), var(&[5], DType::F32), var(&[4], DType::I32));
    for (x, gamma, beta, eps, start) in [
        (&scalar, &good, &good, EPS, "layer_norm: x: want [..,C]"),
        (&ints, &good, &good, EPS, "layer_norm: x: want f32"),
        (&x, &long, &good, EPS, "layer_norm: gamma: want [4]"),
        (&x, &good, &long, EPS, "layer_norm: beta: want [4]"),
        (&x, &wrong, &good, EPS, "layer_norm: gamma: want f32"),
        (&x, &good, &wrong, EPS, "layer_norm: beta: want f32"),
        (&x, &good, &good, -1.0, "layer_norm: eps"),
        (&x, &good, &good, f32::NAN, "layer_norm: eps"),
    ] {
        let error = layer_norm(&mut Tape::new(&dev), x, gamma, beta, eps).unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn as_torch() {
    let file = OpFixture::open("swin_layers");
    let get = |key: &str| file.f32(&format!("ln.{key}"));
    let p = Problem {
        shape: vec![5, 12],
        x: get("x0"),
        gamma: get("param.weight"),
        beta: get("param.bias"),
        dy: get("gout"),
        affine: true,
        dx: true,
        shared: false,
    };
    let got = everywhere(|dev| p.run(dev));
    for (got, key) in got.iter().zip(["y", "dx0", "dparam.weight", "dparam.bias"]) {
        assert_close(key, &got.f32s(), &wide(&get(key)), 1e-5, 1e-4);
    }
}
