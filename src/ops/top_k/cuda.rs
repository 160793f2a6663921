//! Launches of kernels/top_k.cu.

use crate::device::Device;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Segments of at most this many scores are sorted whole (the kernels' DIRECT).
const DIRECT: usize = 4096;
/// Scores of a block that counts or splits (CHUNK).
const CHUNK: usize = 8192;
/// Words of a long segment's counts (COUNTS).
const COUNTS: usize = 2048 + 4;
/// Segments of a launch (SEGMENTS).
const SEGMENTS: usize = 16;

/// Mirror of the kernels' TopKSegment.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Segment {
    start: u32,
    len: u32,
    k: u32,
    column: u32,
    chunk: u32,
    slot: u32,
    key: u32,
}

/// Mirror of the kernels' TopKParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: u32,
    columns: u32,
    slots: u32,
    keys: u32,
    segments: u32,
    s: [Segment; SEGMENTS],
}

/// Scores of the segments that are not sorted whole.
fn long(segments: &[(usize, usize, usize)]) -> impl Iterator<Item = usize> + '_ {
    segments.iter().map(|s| s.1).filter(|&len| len > DIRECT)
}

/// The long segments' keys (8 bytes a score) and their counts, which begin as 0.
pub(super) fn workspace(device: &Device, b: usize, segments: &[(usize, usize, usize)]) -> Result<Vec<Tensor>> {
    let keys = Tensor::empty(device, &[b, long(segments).sum(), 2], DType::I32)?;
    Ok(vec![keys, Tensor::zeros(device, &[b, long(segments).count(), COUNTS], DType::I32)?])
}

pub(super) fn forward(
    idx: &mut Tensor,
    ws: &mut [Tensor],
    scores: &Tensor,
    segments: &[(usize, usize, usize)],
) -> Result<()> {
    let [keys, counts] = ws else { unreachable!("top_k: the workspace of a GPU") };
    let dim = |n| dim_u32("top_k", n);
    let (device, b) = (idx.device().clone(), scores.dim(0));
    let (mut column, mut slot, mut key) = (0, 0, 0);
    for batch in segments.chunks(SEGMENTS) {
        let mut p = Params {
            n: dim(scores.dim(1))?,
            columns: dim(idx.dim(1))?,
            slots: dim(counts.dim(1))?,
            keys: dim(keys.dim(1))?,
            segments: dim(batch.len())?,
            s: [Segment::default(); SEGMENTS],
        };
        let (mut chunk, mut counted) = (0, false);
        for (s, &(start, len, k)) in p.s.iter_mut().zip(batch) {
            *s = Segment {
                start: dim(start)?,
                len: dim(len)?,
                k: dim(k)?,
                column: dim(column)?,
                chunk: dim(chunk)?,
                slot: dim(slot)?,
                key: dim(key)?,
            };
            column += k;
            if len > DIRECT {
                (chunk, slot, key) = (chunk + len.div_ceil(CHUNK), slot + 1, key + len);
                counted |= len > k;
            }
        }
        let chunks = Grid::blocks(chunk, 512).y(b);
        if counted {
            let k = device.gpu().kernel("top_k_histogram", DType::F32).out(counts).arg(scores).params(&p);
            // SAFETY: top_k_histogram(counts, scores, params): a block for each chunk of a long segment, counts
            // [B,slots,COUNTS] (`workspace`); segments lie in rows of n scores (checked in mod.rs).
            unsafe { k.launch(chunks) }?;
        }
        let k = device.gpu().kernel("top_k_split", DType::F32).out(keys).out(counts).arg(scores).params(&p);
        // SAFETY: top_k_split(keys, counts, scores, params): as above; keys [B,scores of long segments] u64
        // (`workspace`).
        unsafe { k.launch(chunks) }?;
        let k = device.gpu().kernel("top_k_finish", DType::F32).out(idx).out(keys).arg(counts).arg(scores).params(&p);
        // SAFETY: top_k_finish(out, keys, counts, scores, params): as above; out [B,sum of k] (mod.rs makes it).
        unsafe { k.launch(Grid::blocks(batch.len(), 1024).y(b)) }?;
    }
    Ok(())
}
