//! Launches of kernels/layer_norm.cu.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Threads of a block: of rows, and of the sums over rows.
const ROW_THREADS: u32 = 128;
const SUM_THREADS: u32 = 256;
/// Vectors of a row that one warp reads at once, and of a block of the sums at most.
const WARP: usize = 32;
/// About how many blocks the sums get, and the least rows of a thread: enough for a large GPU, but few partial sums.
const SUM_BLOCKS: usize = 132 * 4;
const MIN_ROWS: usize = 4;
/// Columns of a block of the fold.
const COLUMNS: usize = 32;

/// Mirror of the kernels' LayerNormParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    m: i64,
    c: u32,
    lanes: u32,
    chunk: u32,
    chunks: u32,
    eps: f32,
    unused: u32,
}

/// How blocks walk `[m, c]`. It depends on the shape and the type alone.
struct Walk {
    m: usize,
    c: usize,
    /// Vectors of a row, and the lanes that share them: a power of two, a warp at most.
    vectors: usize,
    lanes: usize,
    /// Rows of a block of the sums, and of a chunk.
    rows: usize,
    chunk: usize,
}

impl Walk {
    fn new(m: usize, c: usize, dtype: DType) -> Walk {
        let vector = 16 / dtype.bytes();
        let vectors = if c.is_multiple_of(vector) { c / vector } else { c };
        let lanes = vectors.next_power_of_two().clamp(1, WARP);
        let (rows, groups) = (SUM_THREADS as usize / lanes, vectors.div_ceil(lanes).max(1));
        let blocks = (SUM_BLOCKS / groups).max(1);
        let chunk = m.div_ceil(blocks).max(MIN_ROWS * rows).next_multiple_of(rows);
        Walk { m, c, vectors, lanes, rows, chunk }
    }

    fn chunks(&self) -> usize {
        self.m.div_ceil(self.chunk)
    }

    fn params(&self, eps: f32) -> Result<Params> {
        let dim = |n| dim_u32("layer_norm", n);
        let (c, lanes, chunk, chunks) = (dim(self.c)?, dim(self.lanes)?, dim(self.chunk)?, dim(self.chunks())?);
        Ok(Params { m: self.m as i64, c, lanes, chunk, chunks, eps, unused: 0 })
    }

    /// `lanes` threads a row.
    fn by_row(&self) -> Grid {
        Grid::blocks(self.m.div_ceil(ROW_THREADS as usize / self.lanes), ROW_THREADS)
    }

    /// Blocks along x share the channels out, along y the chunks.
    fn by_column(&self) -> Grid {
        let grid = Grid::blocks(self.vectors.div_ceil(self.lanes), SUM_THREADS).y(self.chunks());
        Grid { threads: [self.lanes as u32, self.rows as u32, 1], ..grid }
    }
}

pub(super) fn chunks(m: usize, c: usize, dtype: DType) -> usize {
    Walk::new(m, c, dtype).chunks()
}

pub(super) fn forward(
    y: &mut Tensor,
    stats: &mut Tensor,
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
) -> Result<()> {
    let (device, walk) = (x.device().clone(), Walk::new(stats.dim(1), gamma.numel(), x.dtype()));
    let k = device.gpu().kernel("layer_norm_fwd", x.dtype()).out(y).out(stats);
    let k = k.arg(x).arg(gamma).arg(beta).params(&walk.params(eps)?);
    // SAFETY: layer_norm_fwd(y, stats, x, gamma, beta, params): x and y [M,C], stats [2,M], gamma and beta [C] (checked
    // in mod.rs).
    unsafe { k.launch(walk.by_row()) }
}

/// `dx` is written last: it may hold dy.
pub(super) fn backward(
    dx: Option<&mut Tensor>,
    partial: &mut Tensor,
    dy: Option<&Tensor>,
    x: &Tensor,
    gamma: &Tensor,
    stats: &Tensor,
) -> Result<()> {
    let (device, walk) = (x.device().clone(), Walk::new(stats.dim(1), gamma.numel(), x.dtype()));
    let params = walk.params(0.0)?;
    if partial.numel() > 0 {
        let dy = dy.or(dx.as_deref()).expect("layer_norm: dy is in dx, or by itself");
        let k = device
            .gpu()
            .kernel("layer_norm_bwd_dparams", x.dtype())
            .out(partial)
            .arg(dy)
            .arg(x)
            .arg(stats)
            .params(&params);
        // SAFETY: layer_norm_bwd_dparams(partial, dy, x, stats, params): partial [chunks,2,C] (`chunks`), dy and x
        // [M,C], stats [2,M].
        unsafe { k.launch(walk.by_column())? }
    }
    let Some(dx) = dx else { return Ok(()) };
    let k = device
        .gpu()
        .kernel("layer_norm_bwd_dx", x.dtype())
        .out(dx)
        .opt(dy)
        .arg(x)
        .arg(gamma)
        .arg(stats)
        .params(&params);
    // SAFETY: layer_norm_bwd_dx(dx, dy, x, gamma, stats, params): as above, dx [M,C] (mod.rs makes it), gamma [C];
    // without dy it is in dx.
    unsafe { k.launch(walk.by_row()) }
}

pub(super) fn fold(target: &mut Tensor, partial: &Tensor, which: usize, add: bool) -> Result<()> {
    let dim = |n| dim_u32("layer_norm", n);
    let (device, c) = (partial.device().clone(), target.numel());
    let k = device.gpu().kernel("layer_norm_bwd_fold", DType::F32).out(target).arg(partial);
    let k = k.params(&dim(c)?).params(&dim(partial.dim(0))?).params(&dim(which)?).params(&u32::from(add));
    // SAFETY: layer_norm_bwd_fold(target, partial, c, chunks, which, add): target [C], partial [chunks,2,C] (mod.rs
    // makes it).
    unsafe { k.launch(Grid::blocks(c.div_ceil(COLUMNS), SUM_THREADS)) }
}
