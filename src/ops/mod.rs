//! Ops: the computations of a network and its training, one folder per op. In each folder, `mod.rs` has the docs,
//! checks, output shapes, dispatch and gradient rule, `cpu.rs` the loops, and `cuda.rs` the launches of
//! `kernels/<op>.cu`. [`OPS`] lists all ops.
//!
//! An op allocates its outputs and workspaces in `mod.rs` and then dispatches. So the plan device, which computes
//! nothing, sees the same allocations as the CPU. Layers with parameters are in [`crate::nn`], and code that only
//! detectors need is in [`crate::detection`]. Read `gelu` first; docs/adding_an_op.md explains how to write an op.

pub mod adamw;
pub mod anchors_valid;
pub mod avg_factor;
pub mod batch_norm_relu;
pub mod bce;
pub mod box_decode;
pub mod box_encode;
pub mod boxes_with_gt;
pub mod cast;
pub mod class_candidates;
pub mod clip_scale;
pub mod common;
pub mod concat_rows;
pub mod conv2d;
pub mod count_rows;
pub mod deconv2x2;
pub mod dense_targets;
pub mod drop_path;
pub mod ema;
pub mod gather_i32;
pub mod gather_rows;
pub mod gelu;
pub mod grad_norm;
pub mod image_normalize;
pub mod labels;
pub mod layer_norm;
pub mod linear;
pub mod loss_scale;
pub mod mask_targets;
pub mod match_boxes;
pub mod max_pool;
pub mod nms;
pub mod pair_candidates;
pub mod positives;
pub mod refine_boxes;
pub mod relu;
pub mod roi_align;
pub mod row_max;
pub mod rpn_targets;
pub mod sample;
pub mod scaled_seed;
pub mod select_linear;
pub mod sgd;
pub mod sigmoid_focal;
pub mod smooth_l1;
pub mod softmax;
pub mod softmax_ce;
pub mod space_to_depth;
pub mod top_k;
pub mod upsample_add;
pub mod valid_groups;
pub mod window_attention;
pub mod with_gt;

/// The registry entry of an op; tests/house/registry.rs checks each entry against the source tree.
#[derive(Clone, Copy, Debug)]
pub struct OpInfo {
    /// The name of the folder, of the function and of the range in profiles.
    pub name: &'static str,
    /// Whether gradients flow through the op.
    pub gradient: Gradient,
}

/// Whether gradients flow through an op.
#[derive(Clone, Copy, Debug)]
pub enum Gradient {
    /// The op has a gradient rule.
    Yes,
    /// The op has no gradient, for the given reason.
    No(&'static str),
}

/// All ops.
#[rustfmt::skip]
pub const OPS: &[OpInfo] = &[
    adamw::INFO,
    anchors_valid::INFO,
    avg_factor::INFO,
    batch_norm_relu::INFO,
    bce::INFO,
    box_decode::INFO,
    box_encode::INFO,
    boxes_with_gt::INFO,
    cast::INFO,
    class_candidates::INFO,
    clip_scale::INFO,
    concat_rows::INFO,
    conv2d::INFO,
    count_rows::INFO,
    deconv2x2::INFO,
    dense_targets::INFO,
    drop_path::INFO,
    ema::INFO,
    gather_i32::INFO,
    gather_rows::INFO,
    gelu::INFO,
    grad_norm::INFO,
    image_normalize::INFO,
    labels::INFO,
    layer_norm::INFO,
    linear::INFO,
    loss_scale::INFO,
    mask_targets::INFO,
    match_boxes::INFO,
    max_pool::INFO,
    nms::INFO,
    pair_candidates::INFO,
    positives::INFO,
    refine_boxes::INFO,
    relu::INFO,
    roi_align::INFO,
    row_max::INFO,
    rpn_targets::INFO,
    sample::INFO,
    scaled_seed::INFO,
    select_linear::INFO,
    sgd::INFO,
    sigmoid_focal::INFO,
    smooth_l1::INFO,
    softmax::INFO,
    softmax_ce::INFO,
    space_to_depth::INFO,
    top_k::INFO,
    upsample_add::INFO,
    valid_groups::INFO,
    window_attention::INFO,
    with_gt::INFO,
];
