//! Gathers the candidates that suppression has kept into detections.

use crate::error::Result;
use crate::ops::class_candidates::Candidates;
use crate::ops::gather_i32::gather_i32;
use crate::ops::gather_rows::gather_rows_of;
use crate::tensor::Tensor;

/// Gathers the candidates whose indices are in `keep`, in its order. An index outside `0..N` (-1) gives an empty slot:
/// box 0, score 0, class -1.
///
/// Shapes: keep `[B,D]` i32; boxes `[B,D,4]` f32, scores `[B,D]` f32, classes `[B,D]` i32.
/// Cost: reads and writes 6·B·D elements.
/// Errors: `Shape` if keep is not `[B,D]`.
pub fn detections(candidates: &Candidates, keep: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    let _op = keep.device().enter("detections");
    let Candidates { boxes, scores, classes } = candidates;
    let [b, n] = scores.dims("detections: scores")?;
    let scores = gather_rows_of(&scores.reshape(&[b, n, 1])?, keep)?;
    Ok((gather_rows_of(boxes, keep)?, scores.reshape(keep.shape())?, gather_i32(classes, keep, -1)?))
}
