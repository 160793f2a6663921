//! For the tests of ops: random inputs, comparisons, finite differences, and one op run in every way in which it may run.

use rayon::ThreadPoolBuilder;
use safetensors::SafeTensors;
use upres::device::Device;
use upres::error::Result;
use upres::tensor::philox::{Purpose, Stream};
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
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Output {
    /// Copies a tensor of f32 or i32.
    pub fn of(t: &Tensor) -> Output {
        let bytes = match t.dtype() {
            DType::F32 => bytemuck::cast_slice(t.f32s()).to_vec(),
            DType::I32 => bytemuck::cast_slice(t.i32s()).to_vec(),
            other => panic!("no test reads {other:?}"),
        };
        Output { shape: t.shape().to_vec(), bytes }
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// As f32.
    pub fn f32s(&self) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.bytes)
    }

    /// As i32.
    pub fn i32s(&self) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.bytes)
    }
}

/// Runs `f`, which makes its inputs itself and returns what is to be seen of the result:
/// outside a step; under a plan traced on the plan device, in memory that an earlier step left full of NaN; with 1 and with
/// 3 threads. All must agree to the bit. Returns the outputs.
#[track_caller]
pub fn everywhere(f: impl Fn(&Device) -> Result<Vec<Tensor>> + Sync) -> Vec<Output> {
    let run = |dev: &Device| f(dev).expect("the op").iter().map(Output::of).collect::<Vec<_>>();
    let free = run(&Device::cpu());

    let (tracer, cpu) = (Device::plan(), Device::cpu());
    let ((), plan) = tracer.step(None, || f(&tracer).map(drop)).expect("tracing the step");
    let dirt = vec![0xFF_u8; plan.peak_bytes()];
    let soil = |dev: &Device| Tensor::from_slice(dev, &[dirt.len()], &dirt).map(drop);
    let ((), soil_plan) = tracer.step(None, || soil(&tracer)).expect("tracing");
    cpu.step(Some(&soil_plan), || soil(&cpu)).expect("filling the arena with NaN");
    let (planned, _) = cpu.step(Some(&plan), || Ok(run(&cpu))).expect("the planned step");
    assert!(planned == free, "a planned step gives other numbers than a free one");

    for threads in [1, 3] {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let got = pool.install(|| run(&Device::cpu()));
        assert!(got == free, "{threads} threads give other numbers");
    }
    free
}

/// A file of tests/fixtures/ops.
pub struct OpFixture(Vec<u8>);

impl OpFixture {
    /// Opens `tests/fixtures/ops/<name>.safetensors`.
    pub fn open(name: &str) -> Self {
        let path = format!("{}/tests/fixtures/ops/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
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
