//! Launches of kernels/image_normalize.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

/// Mirror of the kernel's ImageNormalizeParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    h: u32,
    w: u32,
    mean: [f32; 3],
    rstd: [f32; 3],
    rest: [f32; 3],
}

pub(super) fn forward(y: &mut Tensor, images: &Tensor, sizes: &Tensor, mean: [f32; 3], std: [f32; 3]) -> Result<()> {
    let device = images.device().clone();
    let [b, h, w, _] = images.dims("image_normalize: images")?;
    dim_u32("image_normalize", 3 * h * w)?; // of an image: the kernel counts so
    let exact = std.map(|s| 1.0 / f64::from(s));
    let rstd = exact.map(|r| r as f32);
    let rest = [0, 1, 2].map(|i| if rstd[i].is_finite() { (exact[i] - f64::from(rstd[i])) as f32 } else { 0.0 });
    let params = Params { h: h as u32, w: w as u32, mean, rstd, rest };
    let vectors = (3 * h * w * y.dtype().bytes()).div_ceil(16);
    let k = device.gpu().kernel("image_normalize", y.dtype()).out(y).arg(images).arg(sizes).params(&params);
    // SAFETY: image_normalize(y, images, sizes, params): y and images [B,H,W,3], sizes [B,4] (checked in mod.rs).
    unsafe { k.launch(Grid::stride(vectors, THREADS).y(b)) }
}
