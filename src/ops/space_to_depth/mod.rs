//! Blocks of pixels to channels: what a convolution whose kernel is as large as its stride sees.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::Tensor;

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "space_to_depth", gradient: Gradient::Yes };

/// Pixels of a block's side at most.
const MAX_SIDE: usize = 64;

/// Sizes of the map, and a block's side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockShape {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    k: usize,
}

impl BlockShape {
    /// Blocks along both sides.
    fn blocks(&self) -> (usize, usize) {
        (self.h.div_ceil(self.k), self.w.div_ceil(self.k))
    }
}

/// `y[i, j, (kh, kw, c)] = x[i k + kh, j k + kw, c]`; pixels behind the right and the lower border are 0. With a
/// `linear` behind it, whose weight is a convolution's `[O,k,k,C]`, it is a convolution of stride `k`.
///
/// Shapes: x `[N,H,W,C]`, y `[N,⌈H/k⌉,⌈W/k⌉,k²C]`, floats of one type.
/// Saves: nothing.
/// Gradient: x.
/// Cost: reads and writes N·H·W·C; memory-bound.
/// Errors: `Shape`, `Dtype`; `Value` if `k` is 0 or above 64.
/// Reference: Dosovitskiy et al. 2021, section 3.1 (k = 4: patches); Liu et al. 2021, section 3.1 (k = 2: merging,
/// there in another order of channels).
pub fn space_to_depth(tape: &mut Tape, x: &Var, k: usize) -> Result<Var> {
    let device = x.device();
    let _op = device.enter("space_to_depth");
    let [n, h, w, c] = x.value().dims("space_to_depth: x")?;
    x.value().expect_float("space_to_depth: x")?;
    if k == 0 || k > MAX_SIDE {
        return Err(Error::value(
            "space_to_depth",
            format!("blocks of {k}×{k} pixels: want a side of 1 to {MAX_SIDE}"),
        ));
    }
    let s = BlockShape { n, h, w, c, k };
    let (oh, ow) = s.blocks();
    let channels =
        c.checked_mul(k * k).ok_or_else(|| Error::value("space_to_depth", format!("{c} channels are too many")))?;
    if wide::needed(x) {
        return wide::run(tape, &[x], move |tape, v| space_to_depth(tape, &v[0], k));
    }
    let mut y = Tensor::empty(device, &[n, oh, ow, channels], x.value().dtype())?;
    on_device!(
        device,
        cpu => cpu::forward(y.f32s_mut(), x.value().f32s(), &s),
        cuda => cuda::forward(&mut y, x.value(), &s),
    );
    Ok(tape.record([x], y, SpaceToDepthBwd { s }))
}

struct SpaceToDepthBwd {
    s: BlockShape,
}

impl Backward for SpaceToDepthBwd {
    fn op(&self) -> &'static str {
        "space_to_depth"
    }

    fn saved_bytes(&self) -> usize {
        0
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let s = self.s;
        let mut dx = Tensor::empty(dy.device(), &[s.n, s.h, s.w, s.c], dy.dtype())?;
        on_device!(
            dy.device(),
            cpu => cpu::backward(dx.f32s_mut(), dy.f32s(), &s),
            cuda => cuda::backward(&mut dx, &dy, &s),
        );
        sink.add(0, dx)
    }
}
