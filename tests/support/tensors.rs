//! For the tests of ops: random inputs, comparisons, finite differences, and one op run in every way in which it may run.

use half::{bf16, f16};
use rayon::ThreadPoolBuilder;
use safetensors::SafeTensors;
use upres::device::Device;
use upres::error::Result;
use upres::philox::{Purpose, Stream};
use upres::tensor::{DType, Element, Tensor};

/// `n` numbers in [lo, hi), the same on every run.
pub fn uniform(seed: u64, n: usize, lo: f32, hi: f32) -> Vec<f32> {
    let mut rng = Stream::new(seed, 0, 0, 0, Purpose::Test).rng();
    (0..n).map(|_| rng.range(lo, hi)).collect()
}

/// `n` integers in [lo, hi), or `lo` if there are none.
pub fn integers(seed: u64, n: usize, lo: i32, hi: i32) -> Vec<i32> {
    let mut rng = Stream::new(seed, 1, 0, 0, Purpose::Test).rng();
    (0..n).map(|_| lo + rng.below((hi - lo).max(1) as u32) as i32).collect()
}

/// `n` boxes with their first corner in [0, size) and sides in [1, size/2).
pub fn boxes(seed: u64, n: usize, size: f32) -> Vec<f32> {
    let mut rng = Stream::new(seed, 2, 0, 0, Purpose::Test).rng();
    let mut one = || {
        let (x, y) = (rng.range(0.0, size), rng.range(0.0, size));
        [x, y, x + rng.range(1.0, 0.5 * size), y + rng.range(1.0, 0.5 * size)]
    };
    (0..n).flat_map(|_| one()).collect()
}

/// A tensor made of a slice.
pub fn tensor<T: Element>(dev: &Device, shape: &[usize], data: &[T]) -> Tensor {
    Tensor::from_slice(dev, shape, data).expect("a tensor of the given elements")
}

/// Panics at the worst element if one differs by more than `abs + rel |want|`; NaN equals only NaN.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f64], abs: f64, rel: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    let mut worst = (0.0, 0);
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let share = match (got.is_nan(), want.is_nan()) {
            (true, true) => 0.0,
            (false, false) if f64::from(got) == want => 0.0, // infinities
            _ => (f64::from(got) - want).abs() / (abs + rel * want.abs()),
        };
        let share = if share.is_nan() { f64::INFINITY } else { share };
        if share > worst.0 {
            worst = (share, i);
        }
    }
    let (share, i) = worst;
    assert!(share <= 1.0, "{what}[{i}]: got {}, want {}: {share:.2} x the tolerance", got[i], want[i]);
}

/// f32 to f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
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
    /// Copies a tensor of f32, bf16 or i32.
    pub fn of(t: &Tensor) -> Output {
        let bytes = match t.dtype() {
            DType::F32 => bytemuck::cast_slice(&t.read::<f32>().expect("f32")).to_vec(),
            DType::BF16 => bytemuck::cast_slice(&t.read::<bf16>().expect("bf16")).to_vec(),
            DType::I32 => bytemuck::cast_slice(&t.read::<i32>().expect("i32")).to_vec(),
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
}

/// Runs `f`, which makes its inputs itself and returns what is to be seen of the result:
/// outside a step; under a plan traced on the plan device, in memory that an earlier step left full of NaN; with 1 and with
/// 3 threads. All must agree to the bit. On every GPU of this build (the simulated device under three orders of its threads)
/// it runs outside a step and under a plan too: these agree to the bit with each other, and with the CPU within 1e-5 of a
/// number's size plus 1e-6 of its tensor's largest (sums run in other orders), integers and bf16 to the bit. Returns the CPU's outputs.
#[track_caller]
pub fn everywhere(f: impl Fn(&Device) -> Result<Vec<Tensor>> + Sync) -> Vec<Output> {
    everywhere_within(1e-5, 1e-6, f)
}

/// As [`everywhere`], with other tolerances for GPUs: of a number's size, and of its tensor's largest.
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

/// How a test of 16-bit storage makes its inputs: rounded to a type, and stored as it or (the reference) as f32.
#[derive(Clone, Copy)]
pub struct Halves {
    round: DType,
    store: DType,
}

impl Halves {
    /// A tensor of these numbers.
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

/// Runs `f` with 16-bit storage on every GPU of this build and compares with the CPU's f32 on the same (rounded) inputs: each
/// output element within `ulps` units in the last place (2^-10 in f16, 2^-7 in bf16) of its own size plus those of a
/// hundredth of its tensor's largest. One rounding of the result is half a unit.
#[track_caller]
pub fn in_halves(ulps: f64, f: impl Fn(&Device, Halves) -> Result<Vec<Tensor>>) {
    in_halves_within(ulps, 0.01 * ulps, f);
}

/// As [`in_halves`], with other tolerances: units in the last place of an element, and of its tensor's largest.
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

/// The GPUs to test on, by name: several devices of one name must agree to the bit. What is not there is said on stderr.
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

/// Two devices on the first GPU: each chooses its own algorithms. Made once a thread. `UPRES_REQUIRE_GPU=1` makes it an error that
/// there is none.
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

/// The outputs under a plan, in memory that an earlier step left full of NaN.
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

/// The package's folder: cargo says it when the tests run; tests run by themselves are run in it.
pub fn root() -> String {
    std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".into())
}

/// A file of tests/fixtures/ops.
pub struct OpFixture(Vec<u8>);

impl OpFixture {
    /// Opens `tests/fixtures/ops/<name>.safetensors`.
    pub fn open(name: &str) -> Self {
        let path = format!("{}/tests/fixtures/ops/{name}.safetensors", root());
        OpFixture(std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
    }

    /// An f32 tensor.
    pub fn f32(&self, key: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.bytes(key, safetensors::Dtype::F32))
    }

    /// An i32 tensor.
    pub fn i32(&self, key: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.bytes(key, safetensors::Dtype::I32))
    }

    /// A tensor of bytes.
    pub fn u8(&self, key: &str) -> Vec<u8> {
        self.bytes(key, safetensors::Dtype::U8)
    }

    /// Dimensions.
    pub fn shape(&self, key: &str) -> Vec<usize> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        file.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}")).shape().to_vec()
    }

    /// A stored `[N,C,H,W]` tensor as `[N,H,W,C]`, and its NCHW shape.
    pub fn nhwc(&self, key: &str) -> (Vec<f32>, [usize; 4]) {
        let shape = self.shape(key).try_into().unwrap_or_else(|s| panic!("{key}: rank 4 wanted, is {s:?}"));
        (super::fixtures::nchw_to_nhwc(&self.f32(key), shape), shape)
    }

    fn bytes(&self, key: &str, dtype: safetensors::Dtype) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let view = file.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(view.dtype(), dtype, "{key}");
        view.data().to_vec()
    }
}
