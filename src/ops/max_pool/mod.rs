//! Max pooling.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "max_pool", gradient: Gradient::Yes };

/// Sizes of one pooling: a square window with `-inf` around the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolShape {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    k: usize,
    stride: usize,
    pad: usize,
}

impl PoolShape {
    fn oh(&self) -> usize {
        self.windows(self.h)
    }
    fn ow(&self) -> usize {
        self.windows(self.w)
    }
    fn windows(&self, cells: usize) -> usize {
        let free = (cells + 2 * self.pad).checked_sub(self.k).filter(|_| cells > 0);
        free.map_or(0, |d| d / self.stride + 1)
    }
    /// Number of a cell of the window; k is at most 15, so it fits.
    fn tap(&self, ky: usize, kx: usize) -> u8 {
        (ky * self.k + kx) as u8
    }
}

/// `y = max` over each `k`×`k` window, `stride_px` apart, with `pad` cells of `-inf` around; the first of equals wins,
/// NaN wins always. With `k = 1` it subsamples: `x[:, ::stride_px, ::stride_px]`.
///
/// Shapes: x `[N,H,W,C]`, y `[N,OH,OW,C]`, floats of one type; `OH = (H + 2 pad - k) / stride + 1`.
/// Saves: the winner's place, u8 `[N,OH,OW,C]`.
/// Gradient: x.
/// Cost: reads k²/stride² · N·H·W·C from cache, writes N·OH·OW·C; memory-bound.
/// Errors: `Value` if `stride_px` is 0, `k` is 0 or above 15, or `2 pad > k`.
/// Reference: He et al. 2016, table 1 (3×3, stride 2, pad 1).
pub fn max_pool(tape: &mut Tape, x: &Var, k: usize, stride_px: usize, pad: usize) -> Result<Var> {
    let _op = x.device().enter("max_pool");
    let [n, h, w, c] = x.value().dims("max_pool: x")?;
    x.value().expect_float("max_pool: x")?;
    if stride_px == 0 || k == 0 || k > 15 || 2 * pad > k {
        return Err(Error::value("max_pool", format!("window {k}, stride {stride_px}, pad {pad} cannot be used")));
    }
    if wide::needed(x) {
        return wide::run(tape, &[x], move |tape, v| max_pool(tape, &v[0], k, stride_px, pad));
    }
    let s = PoolShape { n, h, w, c, k, stride: stride_px, pad };
    let shape = [s.n, s.oh(), s.ow(), s.c];
    let mut y = Tensor::empty(x.device(), &shape, x.value().dtype())?;
    if !tape.will_record(&[x]) {
        on_device!(
            x.device(),
            cpu => cpu::forward(y.f32s_mut(), None, x.value().f32s(), &s),
            cuda => cuda::forward(&mut y, None, x.value(), &s),
        );
        return Ok(tape.constant(y));
    }
    let mut which = Tensor::empty(x.device(), &shape, DType::U8)?;
    on_device!(
        x.device(),
        cpu => cpu::forward(y.f32s_mut(), Some(which.slice_mut()), x.value().f32s(), &s),
        cuda => cuda::forward(&mut y, Some(&mut which), x.value(), &s),
    );
    Ok(tape.record([x], y, MaxPoolBwd { which, s }))
}

struct MaxPoolBwd {
    which: Tensor,
    s: PoolShape,
}

impl Backward for MaxPoolBwd {
    fn op(&self) -> &'static str {
        "max_pool"
    }
    fn saved_bytes(&self) -> usize {
        self.which.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let s = self.s;
        let mut dx = Tensor::empty(dy.device(), &[s.n, s.h, s.w, s.c], dy.dtype())?;
        on_device!(
            dy.device(),
            cpu => cpu::backward(dx.f32s_mut(), dy.f32s(), self.which.slice(), &s),
            cuda => cuda::backward(&mut dx, &self.which, &dy, &s),
        );
        sink.add(0, dx)
    }
}
