//! Boxes of a cascade's next stage.

mod cpu;
mod cuda;

use super::box_decode::box_decode;
use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "refine_boxes", gradient: Gradient::No("boxes are constants of the next stage") };

/// Boxes of a cascade's next stage: each sampled box of this one moved by its deltas, as `box_decode` does, and 1 where
/// it is one of them, or -1 where it is not: padding (`idx` below 0), and the ground truth itself, which stands in
/// front of the proposals in the rows that `idx` names (`idx < truths`). Empty boxes stay.
///
/// Shapes: rois `[B,S,4]` f32; deltas f32, 4·B·S elements; idx `[B,S]` i32; sizes `[B,4]` f32; boxes `[B,S,4]` f32,
/// valid `[B,S]` i32.
/// Saves: nothing.
/// Gradient: none.
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
        cpu => cpu::valid(valid.i32s_mut(), idx.i32s(), first),
        cuda => cuda::valid(&mut valid, idx, first),
    );
    Ok((boxes, valid))
}
