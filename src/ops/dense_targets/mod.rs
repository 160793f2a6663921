//! Class and box targets of all anchors, where none is sampled.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "dense_targets", gradient: Gradient::No("targets are constants of the losses") };

/// The targets of all anchors, without sampling.
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

/// Targets of all anchors from `assigned` (as `match_boxes` gives it: `g + 1`, 0 for negatives, below 0 for anchors
/// that take no part): class and deltas of the ground truth for positives, class `background` for negatives.
///
/// Shapes: anchors `[N,4]` f32, shared by the images; assigned `[B,N]` i32; gt_boxes `[B,G,4]` f32; gt_labels `[B,G]`
/// i32; see [`DenseTargets`].
/// Saves: nothing.
/// Gradient: none.
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
            let x = cpu::Inputs {
                anchors: anchors.f32s(),
                assigned: assigned.i32s(),
                gt_boxes: gt_boxes.f32s(),
                gt_labels: gt_labels.i32s(),
                g,
                background,
                stds,
            };
            let labels = (out.classes.i32s_mut(), out.box_labels.i32s_mut());
            cpu::forward(labels, out.boxes.f32s_mut(), out.counts.i32s_mut(), &x);
        },
        cuda => cuda::forward(&mut out, anchors, assigned, gt_boxes, gt_labels, background, stds),
    );
    Ok(out)
}
