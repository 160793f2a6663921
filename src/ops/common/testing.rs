//! Helpers of the ops' tests: fixtures, random numbers, comparisons.

use safetensors::{Dtype, SafeTensors};

use crate::philox::{Purpose, Stream};

/// A file of tests/fixtures.
pub(crate) struct Fixture {
    bytes: Vec<u8>,
}

impl Fixture {
    pub(crate) fn ops(name: &str) -> Self {
        let path = format!("{}/tests/fixtures/ops/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Self { bytes: std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")) }
    }

    fn get(&self, key: &str, dtype: Dtype) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let view = file.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(view.dtype(), dtype, "{key}");
        (view.shape().to_vec(), view.data().to_vec())
    }

    pub(crate) fn shape(&self, key: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.bytes).expect("a safetensors file").tensor(key).expect(key).shape().to_vec()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).expect("a safetensors file").tensor(key).is_ok()
    }

    pub(crate) fn f32s(&self, key: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.get(key, Dtype::F32).1)
    }

    pub(crate) fn i32s(&self, key: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.get(key, Dtype::I32).1)
    }

    pub(crate) fn u8s(&self, key: &str) -> Vec<u8> {
        self.get(key, Dtype::U8).1
    }

    /// A stored NCHW tensor as NHWC.
    pub(crate) fn nhwc(&self, key: &str) -> Vec<f32> {
        let s = self.shape(key);
        let x = self.f32s(key);
        let (n, c, hw) = (s[0], s[1], s[2] * s[3]);
        let mut y = vec![0.0; x.len()];
        for i in 0..n {
            for k in 0..c {
                for p in 0..hw {
                    y[(i * hw + p) * c + k] = x[(i * c + k) * hw + p];
                }
            }
        }
        y
    }
}

/// `n` numbers in [lo, hi), the same on every run.
pub(crate) fn uniform(seed: u64, n: usize, lo: f32, hi: f32) -> Vec<f32> {
    let mut rng = Stream::new(seed, 0, 0, 0, Purpose::Test).rng();
    (0..n).map(|_| rng.range(lo, hi)).collect()
}

/// `n` boxes with corners in `[-margin, size]` and sides in `[0.5, 0.5 size]`.
pub(crate) fn boxes(seed: u64, n: usize, size: f32, margin: f32) -> Vec<f32> {
    let mut rng = Stream::new(seed, 1, 0, 0, Purpose::Test).rng();
    (0..n)
        .flat_map(|_| {
            let (x, y) = (rng.range(-margin, size), rng.range(-margin, size));
            [x, y, x + rng.range(0.5, 0.5 * size), y + rng.range(0.5, 0.5 * size)]
        })
        .collect()
}

/// Panics at the worst element if one differs by more than `abs + rel·|want|`.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], want: &[f32], abs: f32, rel: f32) {
    assert_eq!(got.len(), want.len());
    let mut worst = (0.0f32, 0);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let excess = if g == w { 0.0 } else { (g - w).abs() / (abs + rel * w.abs()) };
        if excess.is_nan() || excess > worst.0 {
            worst = (if excess.is_nan() { f32::INFINITY } else { excess }, i);
        }
    }
    assert!(worst.0 <= 1.0, "element {}: got {}, want {}", worst.1, got[worst.1], want[worst.1]);
}
