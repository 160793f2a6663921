//! Boxes from predicted deltas, clipped to the image.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

pub(super) use cpu::{decode, image_size};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "box_decode", gradient: Gradient::No("proposals and refined boxes are constants of the losses") };

/// Sizes of one decoding: `b` images, `k` of `n` rows each; `shared` if one `[N,4]` of anchors serves all images.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeShape {
    b: usize,
    n: usize,
    k: usize,
    shared: bool,
}

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
    let s = DecodeShape { b, n, k, shared };
    let mut y = Tensor::empty(deltas.device(), &[b, k, 4], DType::F32)?;
    on_device!(
        deltas.device(),
        cpu => cpu::forward(y.f32s_mut(), anchors.f32s(), deltas.f32s(), idx.map(Tensor::i32s), sizes.f32s(), stds, &s),
        cuda => cuda::forward(&mut y, anchors, deltas, idx, sizes, stds, &s),
    );
    Ok(y)
}

/// Boxes of a cascade's next stage: each sampled box of this one moved by its deltas, as `box_decode` does, and 1 where it
/// is one of them, or -1 where it is not: padding (`idx` below 0), and the ground truth itself, which stands in front of the
/// proposals in the rows that `idx` names (`idx < truths`). Empty boxes stay.
///
/// Shapes: rois `[B,S,4]` f32; deltas f32, 4·B·S elements; idx `[B,S]` i32; sizes `[B,4]` f32; boxes `[B,S,4]` f32, valid
/// `[B,S]` i32.
/// Cost: that of `box_decode`.
/// Errors: `Shape` if the batches or row counts differ.
/// Reference: Cai and Vasconcelos 2018, section 4.1; mmdetection's `refine_bboxes` of class-agnostic deltas.
pub fn refine_boxes(
    rois: &Tensor,
    deltas: &Tensor,
    idx: &Tensor,
    truths: usize,
    sizes: &Tensor,
    stds: [f32; 4],
) -> Result<(Tensor, Tensor)> {
    let device = rois.device();
    let _op = device.enter("refine_boxes");
    let [b, s, _] = rois.dims("refine_boxes: rois")?;
    deltas.reshape(&[deltas.numel()])?.expect_shape("refine_boxes: deltas", &[4 * b * s])?;
    idx.expect_shape("refine_boxes: idx", &[b, s])?;
    idx.expect_dtype("refine_boxes: idx", DType::I32)?;
    let first = i32::try_from(truths).unwrap_or(i32::MAX);
    let boxes = box_decode(rois, &deltas.reshape(&[b, s, 4])?, None, sizes, stds)?;
    let mut valid = Tensor::empty(device, &[b, s], DType::I32)?;
    on_device!(
        device,
        cpu => cpu::proposals_from(valid.i32s_mut(), idx.i32s(), first),
        cuda => cuda::proposals_from(&mut valid, idx, first),
    );
    Ok((boxes, valid))
}

/// The group (pyramid level) of each position, -1 where there is no box: the index is negative, or `w > 0` and `h > 0`
/// do not both hold (a NaN fails them).
///
/// `group_of` lists runs of positions, in order: (length, group).
///
/// Shapes: boxes `[B,K,4]` f32; idx `[B,K]` i32; y `[B,K]` i32.
/// Cost: reads 5·B·K, writes B·K.
/// Errors: `Shape` if idx is not `[B,K]`; `Value` if the runs do not add up to `K`.
pub fn valid_groups(boxes: &Tensor, idx: &Tensor, group_of: &[(usize, i32)]) -> Result<Tensor> {
    let _op = boxes.device().enter("valid_groups");
    let [b, k, _] = boxes.dims("valid_groups: boxes")?;
    boxes.expect_shape("valid_groups: boxes", &[b, k, 4])?;
    boxes.expect_dtype("valid_groups: boxes", DType::F32)?;
    idx.expect_shape("valid_groups: idx", &[b, k])?;
    idx.expect_dtype("valid_groups: idx", DType::I32)?;
    let total: usize = group_of.iter().map(|g| g.0).sum();
    if total != k {
        return Err(Error::value("valid_groups", format!("groups of {total} positions in all for {k} boxes")));
    }
    let mut y = Tensor::empty(boxes.device(), &[b, k], DType::I32)?;
    on_device!(
        boxes.device(),
        cpu => cpu::valid_groups(y.i32s_mut(), boxes.f32s(), idx.i32s(), group_of),
        cuda => cuda::valid_groups(&mut y, boxes, idx, group_of),
    );
    Ok(y)
}
