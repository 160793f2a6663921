//! The candidates of the final non-maximum suppression: (RoI or anchor, class) pairs whose probability passes the
//! threshold.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "class_candidates", gradient: Gradient::No("detections are read, not trained on") };

/// Boxes with a score and a class, those of each image in front and padding behind.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// `[B,N,4]` f32; padding 0.
    pub boxes: Tensor,
    /// `[B,N]` f32; padding 0.
    pub scores: Tensor,
    /// `[B,N]` i32, foreground class; padding -1.
    pub classes: Tensor,
}

/// Sizes of one call; `groups` is K for class-specific deltas, 1 for class-agnostic ones; `n` candidates an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CandidateShape {
    b: usize,
    r: usize,
    k: usize,
    groups: usize,
    n: usize,
}

/// Largest number of K classes whose probabilities can all be above `threshold`: with `n` of them above `t` their sum
/// is above `n t`, and it is at most 1, so `n t < 1`.
///
/// A softmax in f32 adds up to 1 only within rounding; 1e-5 is above the error of 81 terms, (K + 1) 2^-24, and below
/// what would admit another class at any threshold of use. At 0.05 the answer is 20, where exact numbers would give 19.
pub fn class_candidates_bound(k: usize, threshold: f32) -> usize {
    const SUM_MAX: f64 = 1.0 + 1e-5;
    if threshold <= 0.0 {
        return k;
    }
    let n = (SUM_MAX / f64::from(threshold)).ceil() - 1.0;
    k.min(n as usize) // a huge quotient saturates
}

/// All (RoI, class) pairs with `probs > score_threshold`, RoI by RoI and in ascending class, the background (the last
/// class) left out. Boxes are decoded as `box_decode` does, only where the score passes; with `scale` they are
/// multiplied by `1 / scale`: from network pixels to those of the original image.
///
/// Shapes: probs `[B,R,K+1]`, deltas `[B,R,4K]` or `[B,R,4]`, rois `[B,R,4]` f32; valid `[B,R]` i32 (-1 = no RoI);
/// sizes `[B,4]` f32 (img_h, img_w, pad_h, pad_w); scale `[B,2]` f32 (w, h); [`Candidates`] with N =
/// R·[`class_candidates_bound`]. If probs are no probabilities, pairs beyond N are dropped.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads B·R·K probabilities, on a GPU twice, decodes the few that pass; one thread an image, on a GPU a warp a
/// RoI.
/// Errors: `Shape` if batches, RoIs or classes differ; `Value` if the threshold is not a number.
/// Reference: mmdetection's `multiclass_nms` up to the suppression.
pub fn class_candidates(
    probs: &Tensor,
    deltas: &Tensor,
    rois: &Tensor,
    valid: &Tensor,
    sizes: &Tensor,
    stds: [f32; 4],
    score_threshold: f32,
    scale: Option<&Tensor>,
) -> Result<Candidates> {
    let dev = probs.device();
    let _op = dev.enter("class_candidates");
    let [b, r, columns] = probs.dims("class_candidates: probs")?;
    let Some(k) = columns.checked_sub(1) else {
        let (what, want) = ("class_candidates: probs".into(), "[B,R,K+1]".into());
        return Err(Error::Shape { what, want, got: probs.shape().to_vec() });
    };
    let groups = if deltas.shape().last() == Some(&4) { 1 } else { k };
    deltas.expect_shape("class_candidates: deltas", &[b, r, 4 * groups])?;
    rois.expect_shape("class_candidates: rois", &[b, r, 4])?;
    valid.expect_shape("class_candidates: valid", &[b, r])?;
    sizes.expect_shape("class_candidates: sizes", &[b, 4])?;
    valid.expect_dtype("class_candidates: valid", DType::I32)?;
    for (what, t) in [("probs", probs), ("deltas", deltas), ("rois", rois), ("sizes", sizes)] {
        t.expect_dtype(&format!("class_candidates: {what}"), DType::F32)?;
    }
    if let Some(scale) = scale {
        scale.expect_shape("class_candidates: scale", &[b, 2])?;
        scale.expect_dtype("class_candidates: scale", DType::F32)?;
    }
    if score_threshold.is_nan() {
        return Err(Error::value("class_candidates", "the score threshold is not a number"));
    }
    let s = CandidateShape { b, r, k, groups, n: r * class_candidates_bound(k, score_threshold) };
    let boxes = Tensor::empty(dev, &[b, s.n, 4], DType::F32)?;
    let scores = Tensor::empty(dev, &[b, s.n], DType::F32)?;
    let classes = Tensor::empty(dev, &[b, s.n], DType::I32)?;
    // Where kernels run: how many classes of each RoI pass.
    let mut passing = Tensor::empty(dev, &[if dev.runs_kernels() { b * r } else { 0 }], DType::I32)?;
    let mut out = Candidates { boxes, scores, classes };
    on_device!(
        dev,
        cpu => cpu::forward(
            (out.boxes.f32s_mut(), out.scores.f32s_mut(), out.classes.i32s_mut()),
            &cpu::Inputs {
                probs: probs.f32s(),
                deltas: deltas.f32s(),
                rois: rois.f32s(),
                valid: valid.i32s(),
                sizes: sizes.f32s(),
                scale: scale.map(Tensor::f32s),
            },
            &stds,
            score_threshold,
            &s,
        ),
        cuda => {
            let inputs = cuda::Inputs { probs, deltas, rois, valid, sizes, scale };
            cuda::forward(&mut out, &mut passing, &inputs, stds, score_threshold, &s)
        },
    );
    Ok(out)
}
