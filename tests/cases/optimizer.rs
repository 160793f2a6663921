//! Helpers that the tests of sgd, adamw, grad_norm, loss_scale and ema share.

use super::Case;
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::philox;
use upres::tensor::Tensor;

/// Sizes of 150 tensors: small ones, with some larger ones between. The last is beyond the second launch.
pub const MANY: [usize; 150] = {
    let mut sizes = [0; 150];
    let mut i = 0;
    while i < 150 {
        sizes[i] = if i % 32 == 31 || i == 149 { 8192 + i } else { i % 7 };
        i += 1;
    }
    sizes
};

/// A tensor of one element.
pub fn scalar(device: &Device, v: f32) -> Result<Tensor> {
    Tensor::from_slice(device, &[1], &[v])
}

/// Elements of the `i`-th tensor of a list.
pub fn of(list: u64, i: usize, n: usize) -> Vec<f32> {
    uniform(list * 100 + i as u64, n, -1.0, 1.0)
}

/// One tensor for each size of the case.
pub fn tensors(device: &Device, case: &Case, list: u64, scale: f32) -> Result<Vec<Tensor>> {
    let each = case.dims.iter().enumerate();
    let data = |i, n| of(list, i, n).iter().map(|v| scale * v).collect::<Vec<_>>();
    each.map(|(i, &n)| Tensor::from_slice(device, &[n], &data(i, n))).collect()
}

/// The key of a step's random numbers.
pub fn key(device: &Device, step: u64) -> Result<Tensor> {
    Tensor::from_slice(device, &[6], &philox::key(11, 1, step, 0))
}

/// Checks state that is stored in bf16 where the definition gives `want`: each element is one of the two neighbours of
/// its `want`, and together they are unbiased.
#[track_caller]
pub fn assert_rounded(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    let mut sum = 0.0;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        if want == 0.0 {
            assert_eq!(got, 0.0, "{what}[{i}]");
            continue;
        }
        let unit = 2f64.powf(want.abs().log2().floor() - 7.0);
        let off = (f64::from(got) - want) / unit;
        assert!(off.abs() < 1.0001, "{what}[{i}]: got {got}, want {want}: {off} units"); // want is not f32's
        sum += off;
    }
    // The standard deviation of one element's error is at most half a unit.
    let (n, mean) = (want.len().max(1) as f64, sum / want.len().max(1) as f64);
    assert!(mean.abs() < 4.0 * 0.5 / n.sqrt(), "{what}: off by {mean} units in the mean of {n}");
}

/// The bits of the tensors as f32, with all NaN replaced by one.
pub fn bits(tensors: &[Tensor]) -> Vec<Vec<u32>> {
    let one_nan = |v: f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
    tensors.iter().map(|t| floats(t).into_iter().map(one_nan).collect()).collect()
}

/// Runs `f` on the CPU with 1, 2 and 3 threads, and on every GPU of this build: all give the same bits.
#[track_caller]
pub fn to_the_bit(f: impl Fn(&Device) -> Result<Vec<Tensor>> + Sync) {
    let want = bits(&f(&Device::cpu()).expect("the op on the CPU"));
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let got = pool.install(|| bits(&f(&Device::cpu()).expect("the op on the CPU")));
        assert!(got == want, "{threads} threads give other numbers");
    }
    for (name, devices) in gpus() {
        for device in devices {
            assert!(bits(&f(&device).expect("the op")) == want, "{name}: not the CPU's");
        }
    }
}

/// Numbers at the edges of rounding, used as gradients and as state: zeros, the smallest, the largest, infinities, NaN.
pub const EDGES: [f32; 15] = [
    0.0,
    -0.0,
    1.0,
    1.003_906_3, // half a unit of bf16 above 1
    1.0e-45,
    -1.0e-40,
    f32::MIN_POSITIVE,
    1.0e-20,        // its square is denormal
    1.8e19,         // its square is nearly the largest
    3.389_531_4e38, // the largest of bf16
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];
