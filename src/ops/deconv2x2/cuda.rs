//! The transposed convolution on a GPU: `linear`'s products, and launches of kernels/deconv2x2.cu, which moves their
//! rows to pixels and back.

use bytemuck::NoUninit;

use super::Shape;
use crate::device::gpu::{Grid, Pass, dim_u32};
use crate::error::Result;
use crate::ops::linear;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

/// Mirror of the kernels' Deconv2x2Params.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    lines: u64,
    w: u32,
    o: u32,
    relu: u32,
    unused: u32,
}

impl Params {
    fn new(s: &Shape, relu: bool) -> Result<Params> {
        let dim = |n| dim_u32("deconv2x2", n);
        Ok(Params { lines: (s.r * s.h * 2) as u64, w: dim(s.w)?, o: dim(s.o)?, relu: relu.into(), unused: 0 })
    }
}

/// One thread a 16-byte vector.
fn grid(s: &Shape, element_bytes: usize) -> Grid {
    Grid::stride((4 * s.m() * s.o * element_bytes).div_ceil(16), THREADS)
}

/// One of the products of rows `[M,4·O]`, pixels `[M,I]` and wt `[I,4·O]`, as those of a linear layer from rows to
/// pixels.
pub(super) fn product(
    pass: Pass,
    out: &mut Tensor,
    add: bool,
    a: &Tensor,
    b: &Tensor,
    ws: &mut Tensor,
    s: &Shape,
) -> Result<()> {
    linear::cuda::product(pass, out, add, a, b, None, ws, &s.linear()).map(drop)
}

pub(super) fn forward(
    y: &mut Tensor,
    rows: &mut Tensor,
    x: &Tensor,
    wt: &Tensor,
    bias: Option<&Tensor>,
    relu: bool,
    ws: &mut Tensor,
    s: &Shape,
) -> Result<()> {
    product(Pass::Data, rows, false, x, wt, ws, s)?;
    let device = y.device().clone();
    let params = Params::new(s, relu)?;
    let k = device.gpu().kernel("deconv2x2_fwd", y.dtype()).out(y).arg(rows).opt(bias).params(&params);
    // SAFETY: deconv2x2_fwd(y, rows, bias, params): y [R,2H,2W,O] and rows [M,4·O] have as many elements, bias O or
    // null (mod.rs).
    unsafe { k.launch(grid(s, y.dtype().bytes())) }
}

/// `rows` from dy, 0 where y is clamped.
pub(super) fn rows_of(rows: &mut Tensor, dy: &Tensor, y: Option<&Tensor>, s: &Shape) -> Result<()> {
    let device = dy.device().clone();
    let params = Params::new(s, y.is_some())?;
    let k = device.gpu().kernel("deconv2x2_bwd", dy.dtype()).out(rows).arg(dy).opt(y).params(&params);
    // SAFETY: deconv2x2_bwd(rows, dy, y, params): all have 4·M·O elements, y may be null (the tape and mod.rs).
    unsafe { k.launch(grid(s, dy.dtype().bytes())) }
}
