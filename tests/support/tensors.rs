//! Helpers of the tests of ops: tensors, finite differences, and [`everywhere`], which runs an op in every way it may
//! run.

use half::{bf16, f16};
use rayon::ThreadPoolBuilder;
use upres::device::Device;
use upres::error::Result;
use upres::tensor::{DType, Element, Tensor};

pub use super::numbers::*;

/// A tensor made of a slice.
pub fn tensor<T: Element>(dev: &Device, shape: &[usize], data: &[T]) -> Tensor {
    Tensor::from_slice(dev, shape, data).expect("a tensor of the given elements")
}

/// Compares `got`, the gradient of `f` at `x`, with central differences of `f` at about 100 elements.
#[track_caller]
pub fn assert_gradient(what: &str, x: &[f32], got: &[f32], abs: f64, rel: f64, f: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), got.len(), "{what}: number of elements");
    let mut x = wide(x);
    let step = (x.len() / 97).max(1);
    for i in (0..x.len()).step_by(step) {
        let (at, h) = (x[i], 1e-5 * x[i].abs().max(1.0));
        x[i] = at + h;
        let above = f(&x);
        x[i] = at - h;
        let below = f(&x);
        x[i] = at;
        assert_close(
            &format!("{what}: gradient of element {i}"),
            &got[i..=i],
            &[(above - below) / (2.0 * h)],
            abs,
            rel,
        );
    }
}

/// The contents of a tensor.
#[derive(Clone, PartialEq)]
pub struct Output {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Output {
    /// Copies a tensor of f32, bf16, i32 or u8.
    pub fn of(t: &Tensor) -> Output {
        let bytes = match t.dtype() {
            DType::F32 => bytemuck::cast_slice(&t.read::<f32>().expect("f32")).to_vec(),
            DType::BF16 => bytemuck::cast_slice(&t.read::<bf16>().expect("bf16")).to_vec(),
            DType::I32 => bytemuck::cast_slice(&t.read::<i32>().expect("i32")).to_vec(),
            DType::U8 => t.read::<u8>().expect("u8").to_vec(),
            other => panic!("no test reads {other:?}"),
        };
        Output { dtype: t.dtype(), shape: t.shape().to_vec(), bytes }
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// As f32.
    pub fn f32s(&self) -> Vec<f32> {
        match self.dtype {
            DType::BF16 => bytemuck::pod_collect_to_vec::<u8, bf16>(&self.bytes).iter().map(|v| v.to_f32()).collect(),
            _ => bytemuck::pod_collect_to_vec(&self.bytes),
        }
    }

    /// As i32.
    pub fn i32s(&self) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.bytes)
    }

    /// As u8.
    pub fn u8s(&self) -> &[u8] {
        &self.bytes
    }
}

/// Runs `f` in every way an op may run, and returns the CPU's outputs. `f` makes its own inputs and returns the tensors
/// to compare. On the CPU it runs outside a step; in a planned step whose arena an earlier step left full of NaN; and
/// with 1 and with 3 threads. All of these must agree to the bit. On every GPU of this build (on the simulated device
/// under three orders of its threads) it runs outside a step and in a planned step: these agree with each other to the
/// bit, and with the CPU within 1e-5 of a number's size plus 1e-6 of the largest element of its tensor, because sums
/// run in another order. Integers and bf16 agree with the CPU to the bit.
#[track_caller]
pub fn everywhere(f: impl Fn(&Device) -> Result<Vec<Tensor>> + Sync) -> Vec<Output> {
    everywhere_within(1e-5, 1e-6, f)
}

/// Like [`everywhere`], but with other tolerances for GPUs: relative to a number, and to the largest element of its
/// tensor.
#[track_caller]
pub fn everywhere_within(rel: f64, of_max: f64, f: impl Fn(&Device) -> Result<Vec<Tensor>> + Sync) -> Vec<Output> {
    let run = |dev: &Device| f(dev).expect("the op").iter().map(Output::of).collect::<Vec<_>>();
    let cpu = Device::cpu();
    let free = run(&cpu);
    assert!(planned(&cpu, &f) == free, "a planned step gives other numbers than a free one");

    for (name, devices) in gpus() {
        let first = run(&devices[0]);
        for dev in &devices[1..] {
            assert!(run(dev) == first, "{name}: another order of the threads gives other numbers");
        }
        assert!(planned(&devices[0], &f) == first, "{name}: a planned step gives other numbers than a free one");
        assert_eq!(first.len(), free.len());
        for (i, (got, want)) in first.iter().zip(&free).enumerate() {
            assert_eq!((got.dtype, &got.shape), (want.dtype, &want.shape), "{name}: output {i}");
            if want.dtype == DType::F32 {
                let want = wide(&want.f32s());
                let largest = want.iter().filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
                let abs = (of_max * largest).max(f64::from(f32::MIN_POSITIVE));
                assert_close(&format!("{name}: output {i}"), &got.f32s(), &want, abs, rel);
            } else {
                assert!(got == want, "{name}: output {i} is not the CPU's");
            }
        }
    }

    for threads in [1, 3] {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let got = pool.install(|| run(&Device::cpu()));
        assert!(got == free, "{threads} threads give other numbers");
    }
    free
}

/// Makes the inputs of a 16-bit test: numbers rounded to a 16-bit type, stored in that type or, for the reference, as
/// f32.
#[derive(Clone, Copy)]
pub struct Halves {
    round: DType,
    store: DType,
}

impl Halves {
    /// A tensor that holds these numbers, rounded.
    pub fn tensor(self, dev: &Device, shape: &[usize], data: &[f32]) -> Tensor {
        match (self.round, self.store) {
            (DType::F16, DType::F16) => tensor(dev, shape, &data.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>()),
            (DType::BF16, DType::BF16) => {
                tensor(dev, shape, &data.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>())
            }
            (DType::F16, _) => tensor(dev, shape, &data.iter().map(|&v| f16::from_f32(v).to_f32()).collect::<Vec<_>>()),
            _ => tensor(dev, shape, &data.iter().map(|&v| bf16::from_f32(v).to_f32()).collect::<Vec<_>>()),
        }
    }
}

/// Runs `f` with 16-bit storage on the CPU and on every GPU of this build, and compares with the CPU's f32 result for
/// the same rounded inputs. Each output element must be within `ulps` units in the last place (2^-10 in f16, 2^-7 in
/// bf16) of its own size, plus as many units of a hundredth of the largest element of its tensor. One rounding of the
/// result costs half a unit.
#[track_caller]
pub fn in_halves(ulps: f64, f: impl Fn(&Device, Halves) -> Result<Vec<Tensor>>) {
    in_halves_within(ulps, 0.01 * ulps, f);
}

/// Like [`in_halves`], but with two tolerances: units in the last place of an element, and of the largest element of
/// its tensor.
#[track_caller]
pub fn in_halves_within(ulps: f64, of_max: f64, f: impl Fn(&Device, Halves) -> Result<Vec<Tensor>>) {
    for (round, ulp) in [(DType::F16, 2f64.powi(-10)), (DType::BF16, 2f64.powi(-7))] {
        let want: Vec<_> = f(&Device::cpu(), Halves { round, store: DType::F32 }).expect("the op on the CPU");
        let devices = gpus().into_iter().chain([("cpu", vec![Device::cpu()])]);
        for (name, devices) in devices {
            let got = f(&devices[devices.len() - 1], Halves { round, store: round }).expect("the op");
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let what = format!("{name}, {}: output {i}", round.name());
                assert_eq!(got.shape(), want.shape(), "{what}");
                if want.dtype() != DType::F32 {
                    assert!(Output::of(got) == Output::of(want), "{what} is not the CPU's");
                    continue;
                }
                let want = wide(want.f32s());
                let largest = want.iter().filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
                let abs = (of_max * ulp * largest).max(f64::from(f32::MIN_POSITIVE));
                assert_close(&what, &floats(got), &want, abs, ulps * ulp);
            }
        }
    }
}

/// The contents of a tensor of any float type.
pub fn floats(t: &Tensor) -> Vec<f32> {
    match t.dtype() {
        DType::F16 => t.to_vec::<f16>().expect("f16").iter().map(|v| v.to_f32()).collect(),
        DType::BF16 => t.to_vec::<bf16>().expect("bf16").iter().map(|v| v.to_f32()).collect(),
        _ => t.to_vec::<f32>().expect("f32"),
    }
}

/// The GPUs to test on, by name. Several devices under one name must agree to the bit. Says on stderr which GPU is
/// missing.
pub fn gpus() -> Vec<(&'static str, Vec<Device>)> {
    [sim(), cuda()].into_iter().flatten().collect()
}

#[cfg(feature = "sim")]
fn sim() -> Option<(&'static str, Vec<Device>)> {
    Some(("sim", (0..3).map(Device::sim).collect()))
}

#[cfg(not(feature = "sim"))]
fn sim() -> Option<(&'static str, Vec<Device>)> {
    None
}

#[cfg(not(feature = "cuda-driver"))]
fn cuda() -> Option<(&'static str, Vec<Device>)> {
    None
}

/// Two devices on the first GPU, because each chooses its own algorithms. They are made once per thread. With
/// `UPRES_REQUIRE_GPU=1` a missing GPU is an error.
#[cfg(feature = "cuda-driver")]
fn cuda() -> Option<(&'static str, Vec<Device>)> {
    thread_local! {
        static DEVICES: std::cell::OnceCell<Option<Vec<Device>>> = const { std::cell::OnceCell::new() };
    }
    let open = || match (0..2).map(|_| Device::cuda(0)).collect::<Result<Vec<_>>>() {
        Ok(devices) => Some(devices),
        Err(why) if std::env::var_os("UPRES_REQUIRE_GPU").is_some() => panic!("no GPU: {why}"),
        Err(why) => {
            eprintln!("SKIPPED on cuda: {why}");
            None
        }
    };
    DEVICES.with(|devices| devices.get_or_init(open).clone()).map(|devices| ("cuda", devices))
}

/// Runs `f` in a planned step whose arena an earlier step left full of NaN, and returns its outputs.
fn planned(dev: &Device, f: &impl Fn(&Device) -> Result<Vec<Tensor>>) -> Vec<Output> {
    let tracer = dev.planner();
    let ((), plan) = tracer.step(None, || f(&tracer).map(drop)).expect("tracing the step");
    let dirt = vec![0xFF_u8; plan.peak_bytes()];
    let soil = |dev: &Device| Tensor::from_slice(dev, &[dirt.len()], &dirt).map(drop);
    let ((), soil_plan) = tracer.step(None, || soil(&tracer)).expect("tracing");
    dev.step(Some(&soil_plan), || soil(dev)).expect("filling the arena with NaN");
    let run = || Ok(f(dev)?.iter().map(Output::of).collect::<Vec<_>>());
    dev.step(Some(&plan), run).expect("the planned step").0
}
