//! Elementwise helpers of the tape and the optimizer: not an op of the registry.

use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::tensor::elementwise;
use upres::tensor::{DType, Tensor};

fn run(device: &Device, n: usize) -> Result<Vec<Tensor>> {
    let x = Tensor::from_slice(device, &[n], &uniform(1, n, -1.0, 1.0))?;
    let mut sum = Tensor::empty(device, &[n], DType::F32)?;
    elementwise::fill(&mut sum, 2.0)?;
    elementwise::add_assign(&mut sum, &x)?;
    let mut copy = Tensor::empty(device, &[n], DType::F32)?;
    elementwise::copy(&mut copy, &x)?;
    let mean = elementwise::mean(&[&sum, &copy, &x])?;
    Ok(vec![sum, copy, mean])
}

#[test]
fn elementwise_helpers() {
    for n in [0, 1, 33, 16_384, 40_001] {
        let (out, x) = (everywhere(|dev| run(dev, n)), uniform(1, n, -1.0, 1.0));
        assert!(out[0].f32s().iter().zip(&x).all(|(s, x)| *s == 2.0 + x) && out[1].f32s() == x);
        let mean = x.iter().map(|&x| (2.0 + 3.0 * f64::from(x)) / 3.0).collect::<Vec<_>>();
        assert_close("mean", &out[2].f32s(), &mean, 1e-6, 1e-6);
    }
    let dev = Device::cpu();
    let (mut y, x) = (Tensor::zeros(&dev, &[2], DType::F32).unwrap(), Tensor::zeros(&dev, &[3], DType::F32).unwrap());
    assert!(elementwise::add_assign(&mut y, &x).is_err() && elementwise::copy(&mut y, &x).is_err());
    assert!(elementwise::mean(&[]).is_err() && elementwise::mean(&[&y, &x]).is_err());
}
