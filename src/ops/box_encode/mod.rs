//! Regression targets and class labels of sampled boxes, and of all anchors.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "box_encode", gradient: Gradient::No("targets are constants of the losses") };

/// `((gx - px)/pw, (gy - py)/ph, ln(gw/pw), ln(gh/ph)) / stds` of the matched ground truth `g` relative to the box `p`;
/// zeros where `gt` names no ground truth (-1 = not positive).
///
/// Shapes: rois `[B,S,4]`, gt_boxes `[B,G,4]` f32; gt `[B,S]` i32; y `[B,S,4]` f32.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads 9·B·S, writes 4·B·S; two logarithms a positive.
/// Errors: `Shape` if the batches or row counts differ.
/// Reference: Girshick et al. 2014, appendix C; the inverse of `box_decode` where nothing is clamped.
pub fn box_encode(rois: &Tensor, gt_boxes: &Tensor, gt: &Tensor, stds: [f32; 4]) -> Result<Tensor> {
    let _op = rois.device().enter("box_encode");
    let [b, s, _] = rois.dims("box_encode: rois")?;
    let [_, g, _] = gt_boxes.dims("box_encode: gt_boxes")?;
    rois.expect_shape("box_encode: rois", &[b, s, 4])?;
    gt_boxes.expect_shape("box_encode: gt_boxes", &[b, g, 4])?;
    gt.expect_shape("box_encode: gt", &[b, s])?;
    rois.expect_dtype("box_encode: rois", DType::F32)?;
    gt_boxes.expect_dtype("box_encode: gt_boxes", DType::F32)?;
    gt.expect_dtype("box_encode: gt", DType::I32)?;
    let mut y = Tensor::empty(rois.device(), &[b, s, 4], DType::F32)?;
    on_device!(
        rois.device(),
        cpu => cpu::forward(y.f32s_mut(), rois.f32s(), gt_boxes.f32s(), gt.i32s(), s, g, stds),
        cuda => cuda::forward(&mut y, rois, gt_boxes, gt, stds),
    );
    Ok(y)
}

/// Class of each sample: its ground truth's for positives, `background` for negatives, -1 for padding (`idx` -1).
///
/// Shapes: gt `[B,S]` (-1 = not positive), idx `[B,S]`, gt_labels `[B,G]`, y `[B,S]`, all i32.
/// Cost: reads 2·B·S, writes B·S.
/// Errors: `Shape` if the batches or row counts differ.
pub fn labels(gt: &Tensor, idx: &Tensor, gt_labels: &Tensor, background: i32) -> Result<Tensor> {
    let _op = gt.device().enter("labels");
    let [b, s] = gt.dims("labels: gt")?;
    let [_, g] = gt_labels.dims("labels: gt_labels")?;
    idx.expect_shape("labels: idx", &[b, s])?;
    gt_labels.expect_shape("labels: gt_labels", &[b, g])?;
    for (what, t) in [("gt", gt), ("idx", idx), ("gt_labels", gt_labels)] {
        t.expect_dtype(&format!("labels: {what}"), DType::I32)?;
    }
    let mut y = Tensor::empty(gt.device(), &[b, s], DType::I32)?;
    on_device!(
        gt.device(),
        cpu => cpu::labels(y.i32s_mut(), gt.i32s(), idx.i32s(), gt_labels.i32s(), s, g, background),
        cuda => cuda::labels(&mut y, gt, idx, gt_labels, background),
    );
    Ok(y)
}

/// What every anchor should become, where none is sampled.
#[derive(Clone, Debug)]
pub struct DenseTargets {
    /// Class, K for background, -1 for anchors that take no part; i32 `[B,N]`.
    pub classes: Tensor,
    /// Deltas `[B,N,4]`; zeros unless positive.
    pub boxes: Tensor,
    /// The column group of the box for `smooth_l1`: 0 where positive, else -1; i32 `[B,N]`.
    pub box_labels: Tensor,
    /// Positives and negatives, i32 `[B,2]`.
    pub counts: Tensor,
}

/// Targets of all anchors from `assigned` (as `match_boxes` gives it: `g + 1`, 0 for negatives, below 0 for anchors that
/// take no part): class and deltas of the ground truth for positives, class `background` for negatives.
///
/// Shapes: anchors `[N,4]` f32, shared by the images; assigned `[B,N]` i32; gt_boxes `[B,G,4]` f32; gt_labels `[B,G]` i32; see
/// [`DenseTargets`].
/// Cost: reads B·N, writes 6·B·N; two logarithms a positive.
/// Errors: `Shape` if the batches or row counts differ.
/// Reference: mmdetection's `AnchorHead.get_targets` without a sampler.
pub fn dense_targets(
    anchors: &Tensor,
    assigned: &Tensor,
    gt_boxes: &Tensor,
    gt_labels: &Tensor,
    background: i32,
    stds: [f32; 4],
) -> Result<DenseTargets> {
    let device = assigned.device();
    let _op = device.enter("dense_targets");
    let [b, n] = assigned.dims("dense_targets: assigned")?;
    let [_, g, _] = gt_boxes.dims("dense_targets: gt_boxes")?;
    anchors.expect_shape("dense_targets: anchors", &[n, 4])?;
    gt_boxes.expect_shape("dense_targets: gt_boxes", &[b, g, 4])?;
    gt_labels.expect_shape("dense_targets: gt_labels", &[b, g])?;
    anchors.expect_dtype("dense_targets: anchors", DType::F32)?;
    assigned.expect_dtype("dense_targets: assigned", DType::I32)?;
    gt_boxes.expect_dtype("dense_targets: gt_boxes", DType::F32)?;
    gt_labels.expect_dtype("dense_targets: gt_labels", DType::I32)?;
    let mut out = DenseTargets {
        classes: Tensor::empty(device, &[b, n], DType::I32)?,
        boxes: Tensor::empty(device, &[b, n, 4], DType::F32)?,
        box_labels: Tensor::empty(device, &[b, n], DType::I32)?,
        counts: Tensor::zeros(device, &[b, 2], DType::I32)?,
    };
    on_device!(
        device,
        cpu => {
            let x = cpu::Dense {
                anchors: anchors.f32s(),
                assigned: assigned.i32s(),
                gt_boxes: gt_boxes.f32s(),
                gt_labels: gt_labels.i32s(),
                g,
                background,
                stds,
            };
            let labels = (out.classes.i32s_mut(), out.box_labels.i32s_mut());
            cpu::dense_targets(labels, out.boxes.f32s_mut(), out.counts.i32s_mut(), &x);
        },
        cuda => cuda::dense_targets(&mut out, anchors, assigned, gt_boxes, gt_labels, background, stds),
    );
    Ok(out)
}
