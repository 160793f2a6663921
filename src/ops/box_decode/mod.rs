//! Boxes from predicted deltas, clipped to the image.

pub(in crate::ops) mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "box_decode", gradient: Gradient::No("proposals and refined boxes are constants of the losses") };

/// `x = pw d0 s0 + px`, `w = pw exp(clamp(d2 s2))`, likewise `y`, `h`, about the anchor's centre `(px, py)` and size
/// `(pw, ph)` with `s` = stds; then corners clamped to `[0, img_w] x [0, img_h]`. A NaN stays one.
///
/// With `idx`, rows of both anchors and deltas are chosen by it; an index outside `0..N` (-1 = none) gives a zero box.
///
/// Shapes: anchors `[N,4]` (shared) or `[B,N,4]`, deltas `[B,N,4]` f32; idx `[B,K]` i32; sizes `[B,4]` f32 (img_h,
/// img_w, pad_h, pad_w); y `[B,K,4]` f32, `K = N` without idx.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads and writes 4·B·K; two exponentials a box.
/// Errors: `Shape` if the batches or row counts differ.
/// Reference: Girshick et al. 2014, appendix C; clamping as mmdetection's `delta2bbox`.
pub fn box_decode(
    anchors: &Tensor,
    deltas: &Tensor,
    idx: Option<&Tensor>,
    sizes: &Tensor,
    stds: [f32; 4],
) -> Result<Tensor> {
    let _op = deltas.device().enter("box_decode");
    let [b, n, _] = deltas.dims("box_decode: deltas")?;
    deltas.expect_shape("box_decode: deltas", &[b, n, 4])?;
    let shared = anchors.shape().len() == 2;
    anchors.expect_shape("box_decode: anchors", if shared { &deltas.shape()[1..] } else { deltas.shape() })?;
    sizes.expect_shape("box_decode: sizes", &[b, 4])?;
    for (what, t) in [("anchors", anchors), ("deltas", deltas), ("sizes", sizes)] {
        t.expect_dtype(&format!("box_decode: {what}"), DType::F32)?;
    }
    let k = match idx {
        None => n,
        Some(idx) => {
            idx.expect_dtype("box_decode: idx", DType::I32)?;
            let [_, k] = idx.dims("box_decode: idx")?;
            idx.expect_shape("box_decode: idx", &[b, k])?;
            k
        }
    };
    let s = cpu::DecodeShape { b, n, k, shared };
    let mut y = Tensor::empty(deltas.device(), &[b, k, 4], DType::F32)?;
    on_device!(
        deltas.device(),
        cpu => cpu::forward(y.f32s_mut(), anchors.f32s(), deltas.f32s(), idx.map(Tensor::i32s), sizes.f32s(), stds, &s),
        cuda => cuda::forward(&mut y, anchors, deltas, idx, sizes, stds, &s),
    );
    Ok(y)
}
