//! Launches of kernels/nms.cu.

use super::Nms;
use crate::device::Device;
use crate::device::gpu::{Gpu, Grid, Launch, dim_u32};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Boxes of a block that sorts (the kernels' CHUNK).
const CHUNK: usize = 2048;
/// Most words of a mask's row (MAX_WORDS): groups of more than 64 times as many boxes take several rounds.
const MAX_WORDS: usize = 64;
/// Words of a row that a block computes (MASK_WARPS).
const MASK_WARPS: usize = 8;
/// Kept boxes of a block of nms_cross (CROSS_KEPT).
const CROSS_KEPT: usize = 512;
/// Words of an Extent.
const EXTENT: usize = 5;

/// Mirror of the kernels' NmsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: u32,
    groups: u32,
    max_out: u32,
    chunks: u32,
    blocks: u32,
    words: u32,
    round: u32,
    index_bits: u32,
    group_stride: u32,
    offset: u32,
    iou_threshold: f32,
}

/// Blocks of 64 boxes, words of a mask's row, launches that a group of all boxes takes.
fn rounds(n: usize) -> (usize, usize, usize) {
    let blocks = n.div_ceil(64);
    let words = blocks.clamp(1, MAX_WORDS);
    (blocks, words, blocks.div_ceil(words))
}

/// Sorted blocks' extents, keys of the blocks that sort, keys and boxes in order, groups' first places and kept boxes,
/// what earlier rounds removed, and masks: 33 B a box and 512 for the masks, less below 4096 boxes.
///
/// Errors: `Value` if a group and an index do not fit into 32 bits.
pub(super) fn workspace(device: &Device, b: usize, n: usize, p: &Nms) -> Result<Vec<Tensor>> {
    if index_bits(n) + (usize::BITS - p.groups.leading_zeros()) > 32 {
        return Err(Error::value("nms", format!("{} groups of {n} boxes are more than a GPU's keys hold", p.groups)));
    }
    let (blocks, words, _) = rounds(n);
    let make = |len: usize, dtype| Tensor::empty(device, &[b, len], dtype);
    Ok(vec![
        make(EXTENT * n.div_ceil(CHUNK), DType::I32)?,
        make(2, DType::I32)?,
        make(2 * n, DType::I32)?,
        make(2 * n, DType::I32)?,
        make(4 * n, DType::F32)?,
        make(p.groups + 1, DType::I32)?,
        make(2 * p.groups, DType::I32)?,
        make(n, DType::U8)?,
        make(blocks * words * 64 * 2, DType::I32)?,
    ])
}

/// Bits of the largest index.
fn index_bits(n: usize) -> u32 {
    usize::BITS - n.saturating_sub(1).leading_zeros()
}

pub(super) fn forward(
    keep: &mut Tensor,
    ws: &mut [Tensor],
    boxes: &Tensor,
    scores: &Tensor,
    group: &Tensor,
    p: &Nms,
) -> Result<()> {
    let [extents, meta, chunk_keys, keys, placed, starts, state, removed, masks] = ws else {
        unreachable!("nms: the workspace of a GPU")
    };
    let dim = |n| dim_u32("nms", n);
    let (device, b, n) = (keep.device().clone(), boxes.dim(0), boxes.dim(1));
    let gpu = device.gpu();
    let (blocks, words, rounds) = rounds(n);
    let chunks = n.div_ceil(CHUNK);
    let mut params = Params {
        n: dim(n)?,
        groups: dim(p.groups)?,
        max_out: dim(p.max_out)?,
        chunks: dim(chunks)?,
        blocks: dim(blocks)?,
        words: dim(words)?,
        round: 0,
        index_bits: index_bits(n),
        group_stride: if group.shape() == [n] { 0 } else { dim(n)? },
        offset: u32::from(p.offset),
        iou_threshold: p.iou_threshold,
    };
    if p.max_out == 0 {
        return Ok(());
    }
    if n > 0 {
        if p.offset {
            let k = kernel(gpu, "nms_extent").out(extents).arg(boxes).arg(group).params(&params);
            // SAFETY: nms_extent(extents, boxes, group, params): boxes [B,N,4], group [B,N] or [N] (checked in mod.rs),
            // here and below; extents [B,chunks] of 20 bytes (`workspace`).
            unsafe { k.launch(Grid::blocks(chunks, 256).y(b)) }?;
        }
        let k = kernel(gpu, "nms_sort").out(chunk_keys).out(meta).arg(extents).arg(scores).arg(group).params(&params);
        // SAFETY: nms_sort(chunk_keys, meta, extents, scores, group, params): scores [B,N] (checked in mod.rs),
        // chunk_keys [B,N] of 8 bytes, meta [B] of 8 (`workspace`).
        unsafe { k.launch(Grid::blocks(chunks, 1024).y(b)) }?;

        let k = kernel(gpu, "nms_place").out(keys).out(placed).out(starts).out(removed);
        let k = k.arg(chunk_keys).arg(meta).arg(boxes).arg(group).params(&params);
        // SAFETY: nms_place(keys, placed, starts, removed, chunk_keys, meta, boxes, group, params): keys [B,N] of 8
        // bytes, placed [B,N,4] f32, starts [B,groups+1], removed [B,N] u8 (`workspace`).
        unsafe { k.launch(Grid::threads(8 * (n + p.groups + 1), 256).y(b)) }?;

        let k = kernel(gpu, "nms_mask").out(masks).arg(keys).arg(placed).arg(starts).params(&params);
        // SAFETY: nms_mask(masks, keys, placed, starts, params): masks [B,blocks,words,64] of 8 bytes (`workspace`).
        unsafe { k.launch(Grid::blocks(blocks, 256).y(words.div_ceil(MASK_WARPS)).z(b)) }?;

        for round in 0..rounds {
            params.round = dim(round)?;
            let k = kernel(gpu, "nms_resolve").out(keys).out(placed).out(state);
            let k = k.arg(removed).arg(masks).arg(starts).params(&params);
            // SAFETY: nms_resolve(keys, placed, state, removed, masks, starts, params): state [B,groups] of 8 bytes
            // (`workspace`).
            unsafe { k.launch(Grid::blocks(p.groups, 512).y(b)) }?;
            if round + 1 < rounds {
                let k = kernel(gpu, "nms_cross").out(removed).arg(keys).arg(placed).arg(state).arg(starts);
                // SAFETY: nms_cross(removed, keys, placed, state, starts, params): as above.
                unsafe { k.params(&params).launch(Grid::threads(n, 256).y((words * 64).div_ceil(CROSS_KEPT)).z(b)) }?;
            }
        }
    }
    let k = gpu.kernel("nms_output", DType::I32).out(keep).arg(keys).arg(state).arg(starts).params(&params);
    // SAFETY: nms_output(keep, keys, state, starts, params): keep [B,max_out] i32 (mod.rs makes it); without boxes
    // nothing else is read.
    unsafe { k.launch(Grid::threads((8 * n).max(1), 256).y(b)) }
}

fn kernel<'a>(gpu: &'a Gpu, name: &str) -> Launch<'a> {
    gpu.kernel(name, DType::F32)
}
