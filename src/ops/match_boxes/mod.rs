//! Which ground truth each box stands for (mmdetection's MaxIoUAssigner).

mod cpu;
#[cfg(test)]
mod tests;

use self::cpu::ValidSlice;
use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "match_boxes", gradient: Gradient::No("chooses indices") };

/// Thresholds of the IoU of a box with its best ground truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatchBoxes {
    /// From here on: positive.
    pub pos_iou: f32,
    /// Below: negative. Between the two: ignored.
    pub neg_iou: f32,
    /// Low-quality matches: ground truths whose best IoU is at least this.
    pub min_pos_iou: f32,
    /// True: the boxes that are the best of some ground truth are its own, whatever they were before.
    pub low_quality: bool,
}

/// Which boxes take part.
#[derive(Clone, Copy, Debug)]
pub enum Valid<'a> {
    /// All.
    All,
    /// Those with an index that is not negative, i32 `[B,R]`: what `nms` and `sample` return.
    Index(&'a Tensor),
    /// Anchors for which [`takes_part`] holds.
    Anchors {
        /// `[B,4]` f32: image height and width, padded height and width.
        sizes: &'a Tensor,
        /// mmdetection's `allowed_border`; none for its -1.
        border_px: Option<f32>,
    },
}

/// True if an anchor is used in training on an image of `size` = (image height, image width, padded height, padded width):
/// its cell begins inside the padded image and, with a border, `x0, y0 >= -border` and `x1 < width + border`, likewise y.
///
/// A cell begins inside if `column · stride < padded width`. The anchor's centre is `column · stride`, an integer but for
/// the rounding of its sides, and the padded width is an integer: the middle between two integers decides safely.
pub fn takes_part(anchor: [f32; 4], size: &[f32], border_px: Option<f32>) -> bool {
    let [x0, y0, x1, y1] = anchor;
    let begins_inside = 0.5 * (x0 + x1) < size[3] - 0.5 && 0.5 * (y0 + y1) < size[2] - 0.5;
    let stays_inside = |b: f32| x0 >= -b && y0 >= -b && x1 < size[1] + b && y1 < size[0] + b;
    begins_inside && border_px.is_none_or(stays_inside)
}

/// The ground truth of each box: g + 1, 0 negative, -1 ignored, -2 no part (not valid, or NaN coordinates).
///
/// Of equal IoUs the first ground truth wins; in low-quality matches, which come after, the last. A ground truth whose
/// best IoU is 0 takes all boxes with IoU 0 if `min_pos_iou` is 0 (RetinaNet in mmdetection). Images without ground truth
/// are all negative.
///
/// Shapes: boxes `[R,4]` (for all images) or `[B,R,4]` f32; gt `[B,G,4]` f32; gt_count `[B]` i32; assigned `[B,R]` i32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: B·R·G IoUs at most, less those of far-apart blocks; workspace 4·B·G·R/1024 B.
/// Errors: `Shape`, `Dtype`; `Value` if `neg_iou` is above `pos_iou`.
/// Reference: mmdetection `MaxIoUAssigner`; Ren et al. 2015, section 3.1.2.
pub fn match_boxes(boxes: &Tensor, gt: &Tensor, gt_count: &Tensor, valid: Valid<'_>, p: MatchBoxes) -> Result<Tensor> {
    let device = boxes.device();
    let _op = device.enter("match_boxes");
    let [b, g, _] = gt.dims("match_boxes: gt")?;
    gt.expect_shape("match_boxes: gt", &[b, g, 4])?;
    gt.expect_dtype("match_boxes: gt", DType::F32)?;
    gt_count.expect_shape("match_boxes: gt_count", &[b])?;
    gt_count.expect_dtype("match_boxes: gt_count", DType::I32)?;
    let r = boxes.shape().iter().rev().nth(1).copied().unwrap_or(0);
    if boxes.shape() != [r, 4] {
        boxes.expect_shape("match_boxes: boxes", &[b, r, 4])?;
    }
    boxes.expect_dtype("match_boxes: boxes", DType::F32)?;
    match valid {
        Valid::All => {}
        Valid::Index(index) => {
            index.expect_shape("match_boxes: index", &[b, r])?;
            index.expect_dtype("match_boxes: index", DType::I32)?;
        }
        Valid::Anchors { sizes, .. } => {
            sizes.expect_shape("match_boxes: sizes", &[b, 4])?;
            sizes.expect_dtype("match_boxes: sizes", DType::F32)?;
        }
    }
    if p.neg_iou > p.pos_iou || p.neg_iou.is_nan() || p.pos_iou.is_nan() {
        return Err(Error::value("match_boxes", format!("{p:?}: want neg_iou <= pos_iou")));
    }
    let mut assigned = Tensor::empty(device, &[b, r], DType::I32)?;
    let mut ws = Tensor::empty(device, &[cpu::workspace_len(b, r, g)], DType::F32)?;
    on_device!(device, cpu => {
        let valid = match valid {
            Valid::All => ValidSlice::All,
            Valid::Index(index) => ValidSlice::Index(index.i32s()),
            Valid::Anchors { sizes, border_px } => ValidSlice::Anchors(sizes.f32s(), border_px),
        };
        cpu::forward(assigned.i32s_mut(), ws.f32s_mut(), boxes.f32s(), gt.f32s(), gt_count.i32s(), valid, r, &p);
    });
    Ok(assigned)
}
