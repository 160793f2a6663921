//! CPU kernels of box encoding.

use rayon::prelude::*;

/// Boxes of one parallel task.
const CHUNK: usize = 1024;

/// One box `p` and its ground truth `g`, in mmdetection's order of operations.
pub(in crate::ops) fn encode(p: &[f32], g: &[f32], stds: &[f32; 4]) -> [f32; 4] {
    let axis = |p0: f32, p1: f32, g0: f32, g1: f32| {
        let (p_side, g_side) = (p1 - p0, g1 - g0);
        (((g0 + g1) * 0.5 - (p0 + p1) * 0.5) / p_side, (g_side / p_side).ln())
    };
    let (dx, dw) = axis(p[0], p[2], g[0], g[2]);
    let (dy, dh) = axis(p[1], p[3], g[1], g[3]);
    [dx / stds[0], dy / stds[1], dw / stds[2], dh / stds[3]]
}

/// The row of a ground truth, if `gt` names one of `g`.
pub(in crate::ops) fn ground_truth(gt: i32, g: usize) -> Option<usize> {
    usize::try_from(gt).ok().filter(|&i| i < g)
}

pub(super) fn forward(y: &mut [f32], rois: &[f32], gt_boxes: &[f32], gt: &[i32], s: usize, g: usize, stds: [f32; 4]) {
    let rows = y.par_chunks_mut(4 * CHUNK).zip(rois.par_chunks(4 * CHUNK)).zip(gt.par_chunks(CHUNK));
    rows.enumerate().for_each(|(chunk, ((y, rois), gt))| {
        for (j, ((y, p), &gt)) in y.chunks_exact_mut(4).zip(rois.chunks_exact(4)).zip(gt).enumerate() {
            let image = (chunk * CHUNK + j) / s;
            let row = ground_truth(gt, g).map_or([0.0; 4], |i| encode(p, &gt_boxes[4 * (image * g + i)..][..4], &stds));
            y.copy_from_slice(&row);
        }
    });
}
