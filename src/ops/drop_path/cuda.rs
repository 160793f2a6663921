//! Launches of kernels/drop_path.cu.

use super::Draw;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::philox::Purpose;
use crate::tensor::Tensor;

const THREADS: u32 = 256;
/// About how many vectors a thread works on: beside them its block's draw is small.
const TURNS: usize = 4;
/// Blocks along y of any GPU.
const MAX_Y: usize = 65_535;

/// Mirror of the kernels' DropPathParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    sample: i64,
    n: u32,
    purpose: u32,
    drops: u32,
    scale: f32,
    layer: u32,
    unused: u32,
}

/// Blocks along x share a sample out, those along y the samples.
fn grid(t: &Tensor) -> Grid {
    let (n, bytes) = (t.dim(0), t.bytes());
    let vectors = bytes.checked_div(n).unwrap_or(0).div_ceil(16);
    Grid::stride(vectors.div_ceil(TURNS), THREADS).y(n.min(MAX_Y))
}

fn params(t: &Tensor, draw: Option<Draw>) -> Result<Params> {
    let n = t.dim(0);
    let draw = draw.unwrap_or(Draw { drops: 0, scale: 1.0, layer: 0 });
    Ok(Params {
        sample: t.numel().checked_div(n).unwrap_or(0) as i64,
        n: dim_u32("drop_path", n)?,
        purpose: Purpose::DropPath as u32,
        drops: draw.drops,
        scale: draw.scale,
        layer: draw.layer,
        unused: 0,
    })
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, branch: &Tensor, drop: Option<(&Tensor, Draw)>) -> Result<()> {
    let (device, grid, params) = (x.device().clone(), grid(x), params(x, drop.map(|d| d.1))?);
    let k = device
        .gpu()
        .kernel("drop_path_fwd", x.dtype())
        .out(y)
        .arg(x)
        .arg(branch)
        .opt(drop.map(|d| d.0))
        .params(&params);
    // SAFETY: drop_path_fwd(y, x, branch, key, params): three of one size, key [6] or null (checked in mod.rs).
    unsafe { k.launch(grid) }
}

pub(super) fn backward(dbranch: &mut Tensor, dy: &Tensor, key: &Tensor, draw: Draw) -> Result<()> {
    let (device, grid, params) = (dy.device().clone(), grid(dy), params(dy, Some(draw))?);
    let k = device.gpu().kernel("drop_path_bwd", dy.dtype()).out(dbranch).arg(dy).arg(key).params(&params);
    // SAFETY: drop_path_bwd(dbranch, dy, key, params): two of one size (mod.rs makes dbranch), key [6] (checked in
    // mod.rs).
    unsafe { k.launch(grid) }
}
