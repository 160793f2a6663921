//! The top-down step of a feature pyramid: nearest-neighbour upsampling of the top to the lateral's size, plus the
//! lateral.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::Tensor;

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "upsample_add", gradient: Gradient::Yes };

/// Sizes of both maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpsampleShape {
    n: usize,
    /// Height and width of the top.
    ht: usize,
    wt: usize,
    /// Height and width of the lateral and the sum.
    h: usize,
    w: usize,
    c: usize,
}

/// `y[h,w] = lateral[h,w] + top[h HT / H, w WT / W]`, quotients rounded down.
///
/// Shapes: top `[N,HT,WT,C]`, lateral, y `[N,H,W,C]`, floats of one type.
/// Saves: nothing.
/// Gradient: top (a sum), lateral (dy itself, without a copy).
/// Cost: reads N·(H·W + HT·WT)·C, writes N·H·W·C; memory-bound.
/// Errors: `Shape` if N or C differ; `Dtype`; `Value` if the top has no cells and the lateral has.
/// Reference: Lin et al. 2017 (FPN), section 3; torch's interpolate to a given size, mode nearest.
pub fn upsample_add(tape: &mut Tape, top: &Var, lateral: &Var) -> Result<Var> {
    let device = top.device();
    let _op = device.enter("upsample_add");
    let [n, ht, wt, c] = top.value().dims("upsample_add: top")?;
    let [_, h, w, _] = lateral.value().dims("upsample_add: lateral")?;
    lateral.value().expect_shape("upsample_add: lateral", &[n, h, w, c])?;
    top.value().expect_float("upsample_add: top")?;
    lateral.value().expect_dtype("upsample_add: lateral", top.value().dtype())?;
    if h * w > 0 && ht * wt == 0 {
        return Err(Error::value("upsample_add", format!("a top of {ht}×{wt} cells has nothing to give to {h}×{w}")));
    }
    if wide::needed(top) {
        return wide::run(tape, &[top, lateral], move |tape, v| upsample_add(tape, &v[0], &v[1]));
    }
    let s = UpsampleShape { n, ht, wt, h, w, c };
    let mut y = Tensor::empty(device, lateral.shape(), top.value().dtype())?;
    on_device!(
        device,
        cpu => cpu::forward(y.f32s_mut(), top.value().f32s(), lateral.value().f32s(), &s),
        cuda => cuda::forward(&mut y, top.value(), lateral.value(), &s),
    );
    Ok(tape.record([top, lateral], y, UpsampleAddBwd { s }))
}

struct UpsampleAddBwd {
    s: UpsampleShape,
}

impl Backward for UpsampleAddBwd {
    fn op(&self) -> &'static str {
        "upsample_add"
    }

    fn saved_bytes(&self) -> usize {
        0
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let s = self.s;
        if sink.needs(0) {
            let mut dtop = Tensor::empty(dy.device(), &[s.n, s.ht, s.wt, s.c], dy.dtype())?;
            on_device!(
                dy.device(),
                cpu => cpu::backward(dtop.f32s_mut(), dy.f32s(), &s),
                cuda => cuda::backward(&mut dtop, &dy, &s),
            );
            sink.add(0, dtop)?;
        }
        sink.add(1, dy)
    }
}
