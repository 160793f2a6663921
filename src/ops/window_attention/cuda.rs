//! Launches of kernels/window_attention.cu and kernels/window_attention_mma.cu.

use super::AttentionShape;
use crate::device::gpu::{Grid, Launch, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Blocks that a launch should have, about: enough to fill any GPU, few enough for their partial sums.
const BLOCKS: usize = 2048;
/// ROWS, STREAM and PART of window_attention.cu.
const ROWS: usize = 64;
const PART: usize = 36;
/// THREADS and TOKENS of window_attention_mma.cu.
const MMA_THREADS: u32 = 128;
const MMA_TOKENS: usize = 64;

/// Mirror of WindowAttentionParams in kernels/common/windows.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: u32,
    h: u32,
    w: u32,
    c: u32,
    heads: u32,
    d: u32,
    side: u32,
    shift: u32,
    down: u32,
    across: u32,
    windows: u32,
    per_block: u32,
    scale: f32,
}

/// Mirror of the kernels' WindowAttentionFoldParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct FoldParams {
    blocks: u32,
    columns: u32,
    first: u32,
    count: u32,
    rows: u32,
    heads: u32,
    offset: u32,
    accumulate: u32,
}

fn per_block(s: &AttentionShape) -> usize {
    (s.windows.count() * s.heads).div_ceil(BLOCKS).max(1)
}

/// Blocks along x.
fn blocks(s: &AttentionShape) -> usize {
    s.windows.count().div_ceil(per_block(s))
}

fn params(s: &AttentionShape) -> Result<Params> {
    let dim = |n| dim_u32("window_attention", n);
    let (w, [down, across]) = (s.windows, s.windows.grid());
    dim(2 * w.n * w.h * w.w)?; // pixels are counted in i32
    Ok(Params {
        n: dim(w.n)?,
        h: dim(w.h)?,
        w: dim(w.w)?,
        c: dim(s.c)?,
        heads: dim(s.heads)?,
        d: dim(s.head_dim())?,
        side: dim(w.side)?,
        shift: dim(w.shift)?,
        down: dim(down)?,
        across: dim(across)?,
        windows: dim(w.count())?,
        per_block: dim(per_block(s))?,
        scale: s.scale(),
    })
}

/// The kernel of a pass, its name without the type, and its grid.
fn choose(s: &AttentionShape, pass: &str, dtype: DType) -> (String, Grid) {
    let (tokens, d) = (s.windows.tokens(), s.head_dim());
    let width = if d <= 32 { 32 } else { 64 };
    if dtype != DType::F32 && tokens <= MMA_TOKENS && d.is_multiple_of(8) {
        return (format!("window_attention_mma_{pass}_d{width}"), Grid::blocks(blocks(s), MMA_THREADS).y(s.heads));
    }
    // The tile, the table, for each token its pixel and tag; backward a copy of the table for each warp, and two
    // numbers a token.
    let (parts, backward) = (width / 32, pass == "bwd");
    let tables = if backward { 1 + ROWS * parts / 32 } else { 1 };
    let words = ROWS * PART * parts + tables * s.table_rows() + tokens * if backward { 4 } else { 2 };
    let threads = if parts == 1 { 64 } else { 128 };
    (format!("window_attention_{pass}_d{width}"), Grid::blocks(blocks(s), threads).y(s.heads).shared(4 * words))
}

/// Rows and columns of the partial sums of [`backward`]: one row a block.
pub(super) fn partial_sums(s: &AttentionShape) -> [usize; 2] {
    [blocks(s), s.heads * s.table_rows() + if s.windows.padded() { 2 * s.c } else { 0 }]
}

/// `lse` is not written where it is empty.
pub(super) fn forward(
    y: &mut Tensor,
    lse: &mut Tensor,
    qkv: &Tensor,
    qkv_bias: &Tensor,
    table: &Tensor,
    s: &AttentionShape,
) -> Result<()> {
    let (device, params) = (y.device().clone(), params(s)?);
    let (name, grid) = choose(s, "fwd", qkv.dtype());
    let k = device.gpu().kernel(&name, qkv.dtype()).out(y).out_opt((lse.numel() > 0).then_some(lse));
    let k = k.arg(qkv).arg(qkv_bias).arg(table).params(&params);
    // SAFETY: window_attention_fwd(y, lse, qkv, qkv_bias, table, params): y [N,H,W,C], lse [windows,heads,T] or null,
    // qkv [N,H,W,3C], qkv_bias [3C], table [(2 side - 1)²,heads] (checked and made in mod.rs); shared memory as
    // `choose` counts it.
    unsafe { k.launch(grid) }
}

pub(super) fn backward(
    dqkv: &mut Tensor,
    partial: &mut Tensor,
    dy: &Tensor,
    qkv: &Tensor,
    qkv_bias: &Tensor,
    table: &Tensor,
    lse: &Tensor,
    y: &Tensor,
    s: &AttentionShape,
) -> Result<()> {
    let (device, params) = (dy.device().clone(), params(s)?);
    let (name, grid) = choose(s, "bwd", qkv.dtype());
    let k: Launch<'_> = device.gpu().kernel(&name, qkv.dtype()).out(dqkv).out(partial);
    let k = k.arg(dy).arg(qkv).arg(y).arg(lse).arg(qkv_bias).arg(table).params(&params);
    // SAFETY: window_attention_bwd(dqkv, partial, dy, qkv, y, lse, qkv_bias, table, params): as in `forward`, dqkv like
    // qkv, dy like y (the tape checks it), partial as `partial_sums` says.
    unsafe { k.launch(grid) }
}

/// `out (+)= the table's gradient`.
pub(super) fn fold_table(out: &mut Tensor, accumulate: bool, partial: &Tensor, s: &AttentionShape) -> Result<()> {
    fold(out, accumulate, partial, [0, s.heads * s.table_rows(), s.table_rows(), s.heads, 0])
}

/// `out (+)= the gradient of the bias from padded tokens`: of k and v, behind q's.
pub(super) fn fold_bias(out: &mut Tensor, accumulate: bool, partial: &Tensor, s: &AttentionShape) -> Result<()> {
    fold(out, accumulate, partial, [s.heads * s.table_rows(), 2 * s.c, 2 * s.c, 1, s.c])
}

fn fold(out: &mut Tensor, accumulate: bool, partial: &Tensor, how: [usize; 5]) -> Result<()> {
    let dim = |n| dim_u32("window_attention", n);
    let device = out.device().clone();
    let [first, count, rows, heads, offset] = how;
    let params = FoldParams {
        blocks: dim(partial.dim(0))?,
        columns: dim(partial.dim(1))?,
        first: dim(first)?,
        count: dim(count)?,
        rows: dim(rows)?,
        heads: dim(heads)?,
        offset: dim(offset)?,
        accumulate: accumulate.into(),
    };
    let k = device.gpu().kernel("window_attention_fold", DType::F32).out(out).arg(partial).params(&params);
    // SAFETY: window_attention_fold(out, partial, params): partial [blocks,columns], of which it reads `count` columns
    // from `first` on, and writes out from `offset` on, both inside (the callers, with `partial_sums`).
    unsafe { k.launch(Grid::blocks(count.div_ceil(32), 256)) }
}
