//! Plain numbers for the tests of ops: random inputs, comparison, layouts, and the fixtures of single ops.
//!
//! The library's unit tests include this file too, as `crate::ops::testing`. So it knows slices and no tensors, and
//! names the library `upres` in both places.

use safetensors::{Dtype, SafeTensors};
use upres::philox::{Purpose, Stream};

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
    boxes_around(seed, n, size, 0.0)
}

/// Like [`boxes`], but the first corner is in [-margin, size): some boxes begin outside the image.
pub fn boxes_around(seed: u64, n: usize, size: f32, margin: f32) -> Vec<f32> {
    let mut rng = Stream::new(seed, 2, 0, 0, Purpose::Test).rng();
    let mut one = || {
        let (x, y) = (rng.range(-margin, size), rng.range(-margin, size));
        [x, y, x + rng.range(1.0, 0.5 * size), y + rng.range(1.0, 0.5 * size)]
    };
    (0..n).flat_map(|_| one()).collect()
}

/// f32 to f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Panics with the worst element if one differs by more than `abs + rel |want|`. NaN equals only NaN.
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

/// `[N,C,H,W]` to `[N,H,W,C]`; weights `[O,I,KH,KW]` to `[O,KH,KW,I]`; and the columns of a linear layer on flattened
/// features, `[O, C*H*W]` to `[O, H*W*C]` (pass the shape as `[O,C,H,W]`).
pub fn nchw_to_nhwc(x: &[f32], shape: [usize; 4]) -> Vec<f32> {
    let [n, c, h, w] = shape;
    swap_planes(x, n, c, h * w)
}

/// `[N,H,W,C]` to `[N,C,H,W]`, the inverse of [`nchw_to_nhwc`]. `shape` is the NCHW shape in both directions.
pub fn nhwc_to_nchw(x: &[f32], shape: [usize; 4]) -> Vec<f32> {
    let [n, c, h, w] = shape;
    swap_planes(x, n, h * w, c)
}

/// Transposes each of `n` row-major `[rows, cols]` matrices.
fn swap_planes(x: &[f32], n: usize, rows: usize, cols: usize) -> Vec<f32> {
    assert_eq!(x.len(), n * rows * cols, "layout: {n} x {rows} x {cols} elements wanted");
    let mut y = Vec::with_capacity(x.len());
    for m in x.chunks_exact((rows * cols).max(1)) {
        for j in 0..cols {
            y.extend((0..rows).map(|i| m[i * cols + j]));
        }
    }
    y
}

/// The package's folder. Cargo sets the variable; a test binary that runs by itself is started in the folder.
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
        bytemuck::pod_collect_to_vec(&self.bytes(key, Dtype::F32))
    }

    /// An i32 tensor.
    pub fn i32(&self, key: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.bytes(key, Dtype::I32))
    }

    /// A tensor of bytes.
    pub fn u8(&self, key: &str) -> Vec<u8> {
        self.bytes(key, Dtype::U8)
    }

    /// Dimensions.
    pub fn shape(&self, key: &str) -> Vec<usize> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        file.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}")).shape().to_vec()
    }

    /// Whether there is such a tensor.
    pub fn has(&self, key: &str) -> bool {
        SafeTensors::deserialize(&self.0).expect("a safetensors file").tensor(key).is_ok()
    }

    /// A stored `[N,C,H,W]` tensor as `[N,H,W,C]`, and its NCHW shape.
    pub fn nhwc(&self, key: &str) -> (Vec<f32>, [usize; 4]) {
        let shape = self.shape(key).try_into().unwrap_or_else(|s| panic!("{key}: rank 4 wanted, is {s:?}"));
        (nchw_to_nhwc(&self.f32(key), shape), shape)
    }

    fn bytes(&self, key: &str, dtype: Dtype) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let view = file.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(view.dtype(), dtype, "{key}");
        view.data().to_vec()
    }
}
