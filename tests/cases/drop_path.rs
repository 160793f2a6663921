//! Stochastic depth (drop path) with a residual, against its definition and the description of its random numbers.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::drop_path::drop_path;
use upres::philox::{Purpose, Stream};
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

/// The definition: the factor of each sample, 0 or 1 / (1 - rate), from the description of the key.
fn factors(key: [i32; 6], n: usize, rate: f32, layer: u32) -> Vec<f64> {
    let word = |i: usize| u64::from(key[i] as u32);
    let (seed, step) = (word(1) << 32 | word(0), word(4) << 32 | word(3));
    let kept = |i: usize| {
        let stream = Stream::new(seed, key[2] as u8, step, key[5] as u32 + i as u32, Purpose::DropPath);
        f64::from(stream.block(layer)[0] >> 8) / f64::from(1 << 24) >= f64::from(rate)
    };
    (0..n).map(|i| if kept(i) { 1.0 / (1.0 - f64::from(rate)) } else { 0.0 }).collect()
}

/// Any shape; the first dimension counts samples.
const CASES: &[Case] = &[
    case("empty", &[0, 7, 7, 96]),
    case("no_elements", &[3, 0]),
    case("one", &[1]),
    case("tail", &[5, 7, 3]),         // samples that fill no vector
    case("many", &[700, 8]),          // more samples than a block has threads
    case("chunks", &[3, 20_001]),     // more than one chunk a sample, the last one odd
    case("stage1", &[4, 56, 56, 96]), // a Swin-T's first stage on 224 pixels
];

/// Seed (low, high), stage, step (low, high), first image.
const KEY: [i32; 6] = [7, -2, 1, -3, 5, 11];

fn inputs(case: &Case) -> [Vec<f32>; 3] {
    let n = case.dims.iter().product();
    [1, 2, 3].map(|seed| uniform(seed, n, -1.0, 1.0))
}

/// y, dx, dbranch.
fn run(dev: &Device, case: &Case, rate: f32, make: &dyn Fn(&[f32]) -> Tensor) -> Result<Vec<Tensor>> {
    let [x, branch, dy] = inputs(case).map(|v| make(&v));
    let key = tensor(dev, &[6], &KEY);
    let mut tape = Tape::new(dev);
    let (x, branch) = (tape.leaf(x), tape.leaf(branch));
    let y = drop_path(&mut tape, &x, &branch, rate, 3, (rate > 0.0).then_some(&key))?;
    let value = y.value().clone();
    let grads = tape.backward(vec![(y, dy)])?;
    Ok(vec![value, grads.get(&x).expect("dx").clone(), grads.get(&branch).expect("dbranch").clone()])
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let [x, branch, dy] = inputs(case);
        let n = case.dims[0];
        for rate in [0.0, 0.2, 0.9] {
            let s = factors(KEY, n, rate, 3);
            let s: Vec<f64> = (0..x.len()).map(|i| s[i / (x.len() / n)]).collect();
            let y: Vec<f64> = (0..x.len()).map(|i| f64::from(x[i]) + s[i] * f64::from(branch[i])).collect();
            let dbranch: Vec<f64> = (0..x.len()).map(|i| s[i] * f64::from(dy[i])).collect();
            let out = everywhere(|dev| run(dev, case, rate, &|v| tensor(dev, case.dims, v)));
            let what = |part| format!("{}, rate {rate}: {part}", case.name);
            assert_close(&what("y"), &out[0].f32s(), &y, 1e-6, 1e-6);
            assert!(out[1].f32s() == dy, "{}", what("dx"));
            assert_close(&what("dbranch"), &out[2].f32s(), &dbranch, 1e-6, 1e-6);
        }
    }
}

#[test]
fn gradients_are_the_slopes() {
    let case = &CASES[3];
    let [x, branch, dy] = inputs(case);
    let out = run(&Device::cpu(), case, 0.4, &|v| tensor(&Device::cpu(), case.dims, v)).unwrap();
    let (s, of) = (factors(KEY, case.dims[0], 0.4, 3), x.len() / case.dims[0]);
    assert!(s.contains(&0.0) && s.iter().any(|&s| s > 0.0), "one of both kinds");
    let loss = |x: &dyn Fn(usize) -> f64, branch: &dyn Fn(usize) -> f64| -> f64 {
        (0..dy.len()).map(|i| f64::from(dy[i]) * (x(i) + s[i / of] * branch(i))).sum()
    };
    let (fixed_x, fixed_branch) = (|i: usize| f64::from(x[i]), |i: usize| f64::from(branch[i]));
    assert_gradient("dx", &x, out[1].f32s(), 1e-6, 1e-6, |v| loss(&|i| v[i], &fixed_branch));
    assert_gradient("dbranch", &branch, out[2].f32s(), 1e-6, 1e-6, |v| loss(&fixed_x, &|i| v[i]));
}

/// The draws have the wanted rate and depend on every part of the key and on the layer. The second sample of a batch
/// draws the same as the first sample of a batch that starts there.
#[test]
fn draws_are_those_of_the_key() {
    let draw = |key: [i32; 6], n: usize, rate: f32, layer: u32| {
        let out = everywhere(|dev| {
            let mut tape = Tape::new(dev);
            let (x, branch) = (
                tape.constant(tensor(dev, &[n], &vec![0.0f32; n])),
                tape.constant(tensor(dev, &[n], &vec![1.0f32; n])),
            );
            let key = tensor(dev, &[6], &key);
            Ok(vec![drop_path(&mut tape, &x, &branch, rate, layer, Some(&key))?.value().clone()])
        });
        out[0].f32s()
    };
    let base = draw([7, 0, 0, 1, 0, 0], 4000, 0.2, 0);
    let kept = base.iter().filter(|&&s| s == 1.25).count();
    assert_eq!(kept + base.iter().filter(|&&s| s == 0.0).count(), 4000);
    assert!((3100..3300).contains(&kept), "{kept} of 4000 kept: deviation is 25");
    for i in 0..6 {
        let mut key = [7, 0, 0, 1, 0, 0];
        key[i] += 1;
        assert_ne!(draw(key, 4000, 0.2, 0), base, "word {i} of the key");
    }
    assert_ne!(draw([7, 0, 0, 1, 0, 0], 4000, 0.2, 1), base, "another layer");
    assert_eq!(draw([7, 0, 0, 1, 0, 5], 100, 0.2, 0), base[5..105]);
}

/// A dropped branch is not read, so its contents do not matter.
#[test]
fn a_dropped_branch_may_be_nan() {
    let dims = &[9, 5];
    let s = factors(KEY, 9, 0.5, 0);
    let out = everywhere(|dev| {
        let mut tape = Tape::new(dev);
        let x = tape.constant(tensor(dev, dims, &[1.0f32; 45]));
        let branch = tape.constant(tensor(dev, dims, &[f32::NAN; 45]));
        let key = tensor(dev, &[6], &KEY);
        Ok(vec![drop_path(&mut tape, &x, &branch, 0.5, 0, Some(&key))?.value().clone()])
    });
    assert!(out[0].f32s().iter().enumerate().all(|(i, v)| v.is_nan() == (s[i / 5] > 0.0)));
}

#[test]
fn in_16_bits() {
    for case in &CASES[3..6] {
        for rate in [0.0, 0.3] {
            in_halves(1.0, |dev, halves| run(dev, case, rate, &|v| halves.tensor(dev, case.dims, v)));
        }
    }
}

/// The gradient of x, and without drops that of the branch, is dy itself without a copy. Only the key is saved.
#[test]
fn saves_the_key_and_copies_no_gradient() {
    let dev = Device::cpu();
    let zeros = || Tensor::zeros(&dev, &[2, 8], DType::F32).unwrap();
    for (rate, saved) in [(0.0, 0), (0.5, 24)] {
        let key = tensor(&dev, &[6], &KEY);
        let mut tape = Tape::new(&dev);
        let (x, branch) = (tape.leaf(zeros()), tape.leaf(zeros()));
        let y = drop_path(&mut tape, &x, &branch, rate, 0, Some(&key)).unwrap();
        assert_eq!(tape.saved_bytes(), saved);
        let dy = zeros();
        let at = dy.f32s().as_ptr();
        let grads = tape.backward(vec![(y, dy)]).unwrap();
        assert_eq!(grads.get(&x).unwrap().f32s().as_ptr(), at);
        assert_eq!(grads.get(&branch).unwrap().f32s().as_ptr() == at, rate == 0.0);
        assert!(key.is_unique(), "the next pass cannot write its key");
    }
}

#[test]
fn bad_arguments() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let mut var = |shape: &[usize], dtype| tape.leaf(Tensor::zeros(&dev, shape, dtype).unwrap());
    let (x, other, scalar) = (var(&[2, 4], DType::F32), var(&[2, 5], DType::F32), var(&[], DType::F32));
    let ints = var(&[2, 4], DType::I32);
    let key = |shape: &[usize], dtype| Tensor::zeros(&dev, shape, dtype).unwrap();
    let (good, short, floats) = (key(&[6], DType::I32), key(&[5], DType::I32), key(&[6], DType::F32));
    for (x, branch, rate, key, start) in [
        (&ints, &ints, 0.0, None, "drop_path: x: want f32"),
        (&scalar, &scalar, 0.0, None, "drop_path: x: want [N,..]"),
        (&x, &other, 0.0, None, "drop_path: branch: want [2, 4]"),
        (&x, &ints, 0.0, None, "drop_path: branch: want f32"),
        (&x, &x, 1.0, Some(&good), "drop_path: rate is 1"),
        (&x, &x, -0.1, Some(&good), "drop_path: rate is -0.1"),
        (&x, &x, f32::NAN, Some(&good), "drop_path: rate is NaN"),
        (&x, &x, 0.1, None, "drop_path: rate 0.1 needs the key"),
        (&x, &x, 0.1, Some(&short), "drop_path: key: want [6]"),
        (&x, &x, 0.1, Some(&floats), "drop_path: key: want i32"),
    ] {
        let error = drop_path(&mut Tape::new(&dev), x, branch, rate, 0, key).unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }
}
