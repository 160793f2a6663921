//! Launches of kernels/batch_norm_relu.cu. `[m, c]` are the values of a channel and the channels.

use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Vectors of channels of a block at most: a warp.
const MAX_LANES: usize = 32;
/// About how many blocks a reduction and a pass get: several for each processor of a large GPU, but few partial sums.
const SUM_BLOCKS: usize = 132 * 8;
const PASS_BLOCKS: usize = 132 * 16;
/// Rows of a thread at least.
const MIN_ROWS: usize = 4;
/// The folds' blocks: channels (a sector of f32) times chunks.
const FOLD: [u32; 2] = [8, 64];

/// Mirror of the kernels' BatchNormParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    m: i64,
    c: u32,
    chunk: u32,
    chunks: u32,
    relu: u32,
    momentum: f32,
    eps: f32,
}

/// How blocks walk `[m, c]`. It depends on the shape and the type alone.
struct Walk {
    m: usize,
    c: usize,
    /// Vectors of channels and rows of a block.
    lanes: usize,
    rows: usize,
    /// Blocks that share the channels out.
    groups: usize,
    /// Rows of a chunk, which gives one row of partial sums.
    chunk: usize,
}

impl Walk {
    fn new([m, c]: [usize; 2], dtype: DType) -> Walk {
        let vector = 16 / dtype.bytes();
        let vectors = if c.is_multiple_of(vector) { c / vector } else { c };
        let lanes = vectors.next_power_of_two().clamp(1, MAX_LANES);
        let (rows, groups) = (THREADS as usize / lanes, vectors.div_ceil(lanes));
        let chunk = m.div_ceil(blocks_a_group(SUM_BLOCKS, groups)).max(MIN_ROWS * rows).next_multiple_of(rows);
        Walk { m, c, lanes, rows, groups, chunk }
    }

    fn chunks(&self) -> usize {
        self.m.div_ceil(self.chunk)
    }

    fn params(&self) -> Result<Params> {
        let dim = |n| dim_u32("batch_norm_relu", n);
        dim(2 * self.c)?; // the width of the partial sums
        let (c, chunk, chunks) = (dim(self.c)?, dim(self.chunk)?, dim(self.chunks())?);
        Ok(Params { m: self.m as i64, c, chunk, chunks, relu: 0, momentum: 0.0, eps: 0.0 })
    }

    fn grid(&self, blocks: usize) -> Grid {
        Grid { threads: [self.lanes as u32, self.rows as u32, 1], ..Grid::blocks(self.groups, THREADS).y(blocks) }
    }

    /// A block a chunk.
    fn sums(&self) -> Grid {
        self.grid(self.chunks())
    }

    /// Blocks that loop over the rows.
    fn pass(&self) -> Grid {
        self.grid(self.m.div_ceil(MIN_ROWS * self.rows).min(blocks_a_group(PASS_BLOCKS, self.groups)))
    }
}

fn blocks_a_group(blocks: usize, groups: usize) -> usize {
    (blocks / groups.max(1)).max(1)
}

fn fold_grid(columns: usize) -> Grid {
    Grid { threads: [FOLD[0], FOLD[1], 1], ..Grid::threads(columns, FOLD[0]) }
}

/// Shape of the partial results of both reductions.
pub(super) fn partial_shape(size: [usize; 2], dtype: DType) -> [usize; 3] {
    [Walk::new(size, dtype).chunks(), 2, size[1]]
}

pub(super) fn batch_stats(
    stats: &mut Tensor,
    running: (&mut Tensor, &mut Tensor),
    partial: &mut Tensor,
    x: &Tensor,
    momentum: f32,
    eps: f32,
    size: [usize; 2],
) -> Result<()> {
    let (device, walk) = (x.device().clone(), Walk::new(size, x.dtype()));
    let params = Params { momentum, eps, ..walk.params()? };
    let k = device.gpu().kernel("batch_norm_relu_stats", x.dtype()).out(partial).arg(x).params(&params);
    // SAFETY: batch_norm_relu_stats(partial, x, params): x [M,C] (checked in mod.rs), partial [chunks,2,C]
    // (`partial_shape`).
    unsafe { k.launch(walk.sums())? };
    let k = device.gpu().kernel("batch_norm_relu_stats_fold", x.dtype());
    let k = k.out(stats).out(running.0).out(running.1).arg(partial).arg(x).params(&params);
    // SAFETY: batch_norm_relu_stats_fold(stats, running mean, running variance, partial, x, params): stats [2,C], both
    // running statistics [C] (checked in mod.rs), the rest as above.
    unsafe { k.launch(fold_grid(walk.c)) }
}

pub(super) fn running_stats(stats: &mut Tensor, mean: &Tensor, var: &Tensor, eps: f32) -> Result<()> {
    let (device, c) = (mean.device().clone(), mean.numel());
    let k = device.gpu().kernel("batch_norm_relu_running_stats", DType::F32);
    let k = k.out(stats).arg(mean).arg(var).params(&dim_u32("batch_norm_relu", c)?).params(&eps);
    // SAFETY: batch_norm_relu_running_stats(stats, mean, var, c, eps): stats [2,C], mean and var [C] (checked in
    // mod.rs).
    unsafe { k.launch(Grid::threads(c, THREADS)) }
}

pub(super) fn forward(
    y: &mut Tensor,
    x: &Tensor,
    residual: Option<&Tensor>,
    relu: bool,
    stats: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    size: [usize; 2],
) -> Result<()> {
    let (device, walk) = (x.device().clone(), Walk::new(size, x.dtype()));
    let params = Params { relu: relu.into(), ..walk.params()? };
    let k = device.gpu().kernel("batch_norm_relu_fwd", x.dtype()).out(y).arg(x).opt(residual);
    let k = k.arg(stats).arg(gamma).arg(beta).params(&params);
    // SAFETY: batch_norm_relu_fwd(y, x, residual or null, stats, gamma, beta, params): y, x, residual [M,C] of one
    // type, stats [2,C], gamma and beta [C] f32 (checked in mod.rs).
    unsafe { k.launch(walk.pass()) }
}

/// `sums` becomes dgamma and dbeta.
pub(super) fn reduce(
    sums: &mut Tensor,
    partial: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    y: Option<&Tensor>,
    stats: &Tensor,
    size: [usize; 2],
) -> Result<()> {
    let (device, walk) = (x.device().clone(), Walk::new(size, x.dtype()));
    let params = walk.params()?;
    let k = device.gpu().kernel("batch_norm_relu_bwd_sums", x.dtype());
    let k = k.out(partial).arg(dy).arg(x).opt(y).arg(stats).params(&params);
    // SAFETY: batch_norm_relu_bwd_sums(partial, dy, x, y or null, stats, params): dy, x, y [M,C] of one type (saved by
    // mod.rs; the tape checks dy), stats [2,C] f32, partial [chunks,2,C] f32 (`partial_shape`).
    unsafe { k.launch(walk.sums())? };
    let k = device.gpu().kernel("batch_norm_relu_bwd_fold", DType::F32);
    let k = k.out(sums).arg(partial).params(&(2 * params.c)).params(&params.chunks);
    // SAFETY: batch_norm_relu_bwd_fold(sums, partial, width, chunks): sums [2,C], partial [chunks,2,C], width 2 C.
    unsafe { k.launch(fold_grid(2 * walk.c)) }
}

/// `target` becomes row `i` of `sums`, or grows by it.
pub(super) fn put(target: &mut Tensor, sums: &Tensor, i: usize, add: bool) -> Result<()> {
    let (device, c) = (sums.device().clone(), target.numel());
    let (from, width) = (dim_u32("batch_norm_relu", i * c)?, dim_u32("batch_norm_relu", c)?);
    let k = device.gpu().kernel("batch_norm_relu_bwd_put", DType::F32).out(target).arg(sums);
    let k = k.params(&from).params(&width).params(&u32::from(add));
    // SAFETY: batch_norm_relu_bwd_put(target, sums, from, c, add): target [C], sums [2,C], from 0 or C (mod.rs).
    unsafe { k.launch(Grid::threads(c, THREADS)) }
}

/// A map to be written, and what it is made from: itself where there is no other.
pub(super) type InPlace<'a> = (&'a mut Tensor, Option<&'a Tensor>);

/// `dx` from dy; `sums` are dgamma and dbeta.
pub(super) fn backward_train(
    (dx, dy): InPlace<'_>,
    x: &Tensor,
    y: Option<&Tensor>,
    stats: &Tensor,
    gamma: &Tensor,
    sums: &Tensor,
    size: [usize; 2],
) -> Result<()> {
    let (device, walk) = (x.device().clone(), Walk::new(size, x.dtype()));
    let k = device.gpu().kernel("batch_norm_relu_bwd_train", x.dtype()).out(dx).null();
    let k = k.arg(dy.unwrap_or(dx)).arg(x).opt(y).arg(stats).arg(gamma).arg(sums).params(&walk.params()?);
    // SAFETY: batch_norm_relu_bwd_train(dx, dresidual or null, dy, x, y or null, stats, gamma, sums, params): dx, dy,
    // x, y [M,C] of one type, dx may be dy; stats and sums [2,C], gamma [C] f32 (made and saved by mod.rs; the tape
    // checks dy).
    unsafe { k.launch(walk.pass()) }
}

/// `dresidual` from dy, `dx` from x; `sums` are dgamma and dbeta.
pub(super) fn backward_train_residual(
    (dresidual, dy): InPlace<'_>,
    (dx, x): InPlace<'_>,
    y: Option<&Tensor>,
    stats: &Tensor,
    gamma: &Tensor,
    sums: &Tensor,
    size: [usize; 2],
) -> Result<()> {
    let (device, walk) = (dx.device().clone(), Walk::new(size, dx.dtype()));
    let k = device.gpu().kernel("batch_norm_relu_bwd_train", dx.dtype()).out(dx).out(dresidual);
    let k = k.arg(dy.unwrap_or(dresidual)).arg(x.unwrap_or(dx)).opt(y);
    let k = k.arg(stats).arg(gamma).arg(sums).params(&walk.params()?);
    // SAFETY: as in `backward_train`; dresidual [M,C] of the same type may be dy, dx may be x: a thread reads before it
    // writes.
    unsafe { k.launch(walk.pass()) }
}

/// `dx` from dy.
pub(super) fn backward_frozen(
    (dx, dy): InPlace<'_>,
    y: Option<&Tensor>,
    stats: &Tensor,
    gamma: &Tensor,
    size: [usize; 2],
) -> Result<()> {
    let (device, walk) = (dx.device().clone(), Walk::new(size, dx.dtype()));
    let k = device.gpu().kernel("batch_norm_relu_bwd_frozen", dx.dtype()).out(dx).null();
    let k = k.arg(dy.unwrap_or(dx)).opt(y).arg(stats).arg(gamma).params(&walk.params()?);
    // SAFETY: batch_norm_relu_bwd_frozen(dx or null, dresidual or null, dy, y or null, stats, gamma, params): dx, dy, y
    // [M,C] of one type, dx may be dy; stats [2,C], gamma [C] f32 (made and saved by mod.rs; the tape checks dy).
    unsafe { k.launch(walk.pass()) }
}

/// `dresidual` from dy, and `dx` if it is wanted.
pub(super) fn backward_frozen_residual(
    (dresidual, dy): InPlace<'_>,
    dx: Option<&mut Tensor>,
    y: Option<&Tensor>,
    stats: &Tensor,
    gamma: &Tensor,
    size: [usize; 2],
) -> Result<()> {
    let (device, walk) = (dresidual.device().clone(), Walk::new(size, dresidual.dtype()));
    let k = device.gpu().kernel("batch_norm_relu_bwd_frozen", dresidual.dtype()).out_opt(dx).out(dresidual);
    let k = k.arg(dy.unwrap_or(dresidual)).opt(y).arg(stats).arg(gamma).params(&walk.params()?);
    // SAFETY: as in `backward_frozen`; dresidual [M,C] of the same type may be dy.
    unsafe { k.launch(walk.pass()) }
}
