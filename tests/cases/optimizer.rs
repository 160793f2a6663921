//! What the tests of sgd, grad_norm and ema share.

use super::Case;
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::tensor::Tensor;

/// Elements of 150 tensors: small ones with some larger between, the last of them behind the second launch.
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
