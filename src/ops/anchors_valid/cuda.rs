//! Launches of kernels/anchors_valid.cu.

use super::AnchorGrid;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;

/// Levels that one launch takes.
const LEVELS: usize = 8;

/// Mirror of the kernel's AnchorsValidParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    b: u32,
    n: u32,
    begin: u32,
    end: u32,
    levels: u32,
    per_cell: u32,
    border: f32,
    from: [u32; LEVELS],
    w: [u32; LEVELS],
    stride_px: [f32; LEVELS],
}

pub(super) fn forward(out: &mut Tensor, anchors: AnchorGrid<'_>, sizes: &Tensor, border: f32) -> Result<()> {
    let dim = |n| dim_u32("anchors_valid", n);
    let (device, mut begin) = (out.device().clone(), 0);
    for levels in anchors.levels.chunks(LEVELS) {
        let (mut from, mut w, mut stride_px, mut end) = ([0; LEVELS], [0; LEVELS], [0.0; LEVELS], begin);
        for (i, level) in levels.iter().enumerate() {
            (from[i], w[i], stride_px[i]) = (dim(end)?, dim(level.w)?, level.stride_px as f32);
            end += level.h * level.w * anchors.per_cell;
        }
        let params = Params {
            b: dim(out.dim(0))?,
            n: dim(out.dim(1))?,
            begin: dim(begin)?,
            end: dim(end)?,
            levels: dim(levels.len())?,
            per_cell: dim(anchors.per_cell)?,
            border,
            from,
            w,
            stride_px,
        };
        let k = device.gpu().kernel("anchors_valid", DType::U8).out(out).arg(anchors.boxes).arg(sizes).params(&params);
        // SAFETY: anchors_valid(valid, boxes, sizes, params): valid [B,N], boxes [N,4] with the levels' anchors
        // (`Anchors::new`), sizes [B,4] (checked in `valid`).
        unsafe { k.launch(Grid::stride(end - begin, THREADS))? };
        begin = end;
    }
    Ok(())
}
