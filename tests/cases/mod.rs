//! One file per op. Each holds the only list of shapes of its op, with the reason for each shape, and the checks made
//! at each.

mod adamw;
mod anchors_valid;
mod avg_factor;
mod batch_norm_relu;
mod bce;
mod box_decode;
mod box_encode;
mod boxes_with_gt;
mod cast;
mod class_candidates;
mod clip_scale;
mod concat_rows;
mod conv2d;
mod count_rows;
mod deconv2x2;
mod dense;
mod dense_targets;
mod drop_path;
mod elementwise;
mod ema;
mod gather_i32;
mod gather_rows;
mod gelu;
mod grad_norm;
mod image_normalize;
mod labels;
mod layer_norm;
mod linear;
mod loss_scale;
mod mask_targets;
mod match_boxes;
mod max_pool;
mod nms;
mod optimizer;
mod pair_candidates;
mod positives;
mod refine_boxes;
mod relu;
mod rematerialise;
mod roi_align;
mod row_max;
mod rpn_targets;
mod sample;
mod scaled_seed;
mod select_linear;
mod sgd;
mod sigmoid_focal;
mod smooth_l1;
mod softmax;
mod softmax_ce;
mod space_to_depth;
mod top_k;
mod upsample_add;
mod valid_groups;
mod window_attention;
mod with_gt;

/// Sizes of one problem.
pub struct Case {
    pub name: &'static str,
    pub dims: &'static [usize],
}

/// A named problem. The meaning of `dims` is stated at each list of cases.
pub const fn case(name: &'static str, dims: &'static [usize]) -> Case {
    Case { name, dims }
}
