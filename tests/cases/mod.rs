//! One file per op. Each holds the only list of shapes of its op, with the reason for each shape, and the checks made
//! at each.

mod adamw;
mod batch_norm_relu;
mod bce;
mod box_decode;
mod box_encode;
mod cast;
mod class_candidates;
mod concat_rows;
mod conv2d;
mod deconv2x2;
mod dense;
mod drop_path;
mod elementwise;
mod ema;
mod gather_rows;
mod gelu;
mod grad_norm;
mod image_normalize;
mod layer_norm;
mod linear;
mod loss_scale;
mod mask_targets;
mod match_boxes;
mod max_pool;
mod nms;
mod optimizer;
mod relu;
mod rematerialise;
mod roi_align;
mod row_max;
mod sample;
mod select_linear;
mod sgd;
mod sigmoid_focal;
mod smooth_l1;
mod softmax;
mod softmax_ce;
mod space_to_depth;
mod top_k;
mod upsample_add;
mod window_attention;

/// Sizes of one problem.
pub struct Case {
    pub name: &'static str,
    pub dims: &'static [usize],
}

/// A named problem. The meaning of `dims` is stated at each list of cases.
pub const fn case(name: &'static str, dims: &'static [usize]) -> Case {
    Case { name, dims }
}
