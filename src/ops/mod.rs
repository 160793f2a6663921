//! Ops: one folder an op, `mod.rs` (doc, checks, output shape, dispatch, record), `cpu.rs` (kernels), listed in [`OPS`].
//!
//! An op allocates its outputs and workspaces in `mod.rs`, then dispatches; so the plan device, which computes nothing,
//! sees the same allocations as the CPU. docs/adding_an_op.md walks through one.

pub mod adamw;
pub mod batch_norm_relu;
pub mod bce;
mod bias;
pub mod box_decode;
pub mod box_encode;
pub mod cast;
pub mod class_candidates;
pub mod concat_rows;
pub mod conv2d;
pub mod deconv2x2;
pub mod drop_path;
pub mod ema;
pub mod gather_rows;
pub mod gelu;
pub mod grad_norm;
pub mod image_normalize;
pub mod layer_norm;
pub mod linear;
mod live;
pub mod loss_scale;
pub mod mask_targets;
pub mod match_boxes;
pub mod max_pool;
pub(crate) mod multi_tensor;
pub mod nms;
pub(crate) mod order;
pub(crate) mod partial;
pub mod relu;
pub mod roi_align;
pub mod row_max;
pub mod sample;
pub mod select_linear;
pub mod sgd;
pub mod sigmoid_focal;
pub mod smooth_l1;
pub mod softmax;
pub mod softmax_ce;
pub mod space_to_depth;
pub(crate) mod stochastic_rounding;
#[cfg(test)]
#[allow(dead_code)] // the integration tests use the rest
#[path = "../../tests/support/numbers.rs"]
pub(crate) mod testing;
pub mod top_k;
pub mod upsample_add;
mod wide;
pub mod window_attention;

use crate::error::Result;
use crate::on_device;
use crate::tensor::{Tensor, elementwise};

/// What the registry knows of an op; tests/house/registry.rs checks each entry against the source tree.
#[derive(Clone, Copy, Debug)]
pub struct OpInfo {
    /// Name of the folder, of the function and of the range in profiles.
    pub name: &'static str,
    /// Whether gradients flow through it.
    pub gradient: Gradient,
}

/// Whether gradients flow through an op.
#[derive(Clone, Copy, Debug)]
pub enum Gradient {
    /// It has a rule.
    Yes,
    /// It has none, for this reason.
    No(&'static str),
}

/// All ops.
#[rustfmt::skip]
pub const OPS: &[OpInfo] = &[
    adamw::INFO,
    batch_norm_relu::INFO,
    bce::INFO,
    box_decode::INFO,
    box_encode::INFO,
    cast::INFO,
    class_candidates::INFO,
    concat_rows::INFO,
    conv2d::INFO,
    drop_path::INFO,
    deconv2x2::INFO,
    ema::INFO,
    gather_rows::INFO,
    gelu::INFO,
    grad_norm::INFO,
    image_normalize::INFO,
    layer_norm::INFO,
    linear::INFO,
    loss_scale::INFO,
    mask_targets::INFO,
    match_boxes::INFO,
    max_pool::INFO,
    nms::INFO,
    relu::INFO,
    roi_align::INFO,
    row_max::INFO,
    sample::INFO,
    select_linear::INFO,
    sgd::INFO,
    sigmoid_focal::INFO,
    smooth_l1::INFO,
    softmax::INFO,
    softmax_ce::INFO,
    space_to_depth::INFO,
    top_k::INFO,
    upsample_add::INFO,
    window_attention::INFO,
];

/// 0 where `y <= 0`, else `dy`; in place if nobody else holds `dy`. Without `y` there was no ReLU. The CPU leaves images that do
/// not count as they are.
fn relu_gradient(mut dy: Tensor, y: Option<Tensor>, live: &live::Live) -> Result<Tensor> {
    let Some(y) = y else { return Ok(dy) };
    if !dy.is_unique() {
        let mut own = Tensor::empty(dy.device(), dy.shape(), dy.dtype())?;
        elementwise::copy(&mut own, &dy)?;
        dy = own;
    }
    on_device!(
        y.device(),
        cpu => for images in live.ranges() {
            conv2d::cpu::relu_mask(live.part_mut(dy.f32s_mut(), &images), live.part(y.f32s(), &images));
        },
        cuda => elementwise::cuda::relu_mask(&mut dy, &y),
    );
    Ok(dy)
}
