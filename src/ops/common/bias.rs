//! The bias of convolutions and linear layers: its gradient, and, on a GPU, launches of kernels/bias.cu. Not an op of its own.

use bytemuck::NoUninit;
use rayon::prelude::*;

use super::live::Live;
use crate::device::Device;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::on_device;
use crate::tape::Sink;
use crate::tensor::{DType, Tensor};

const THREADS: u32 = 256;
/// Columns of a block of the gradient.
const COLUMNS: usize = 32;
/// Rows of a chunk, at least, and chunks, at most: enough blocks to fill a GPU, and few partial sums beside the rows.
const MIN_ROWS: usize = 64;
const MAX_CHUNKS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u64,
    columns: u32,
    relu: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct GradParams {
    rows: u64,
    rows_per_chunk: u64,
    columns: u32,
    chunks: u32,
    accumulate: u32,
    unused: u32,
}

/// `y = act(y + bias)` in place, over rows of the bias's length (or y's last dimension); nothing to do without both.
pub(in crate::ops) fn forward(y: &mut Tensor, bias: Option<&Tensor>, relu: bool) -> Result<()> {
    if y.numel() == 0 || (bias.is_none() && !relu) {
        return Ok(());
    }
    let columns = *y.shape().last().expect("bias: y has a last dimension");
    let (device, rows) = (y.device().clone(), y.numel() / columns);
    let grid = Grid::stride(y.bytes().div_ceil(16), THREADS);
    let params = Params { rows: rows as u64, columns: dim_u32("bias", columns)?, relu: relu.into() };
    let k = device.gpu().kernel("bias_fwd", y.dtype()).out(y).opt(bias).params(&params);
    // SAFETY: bias_fwd(y, bias, params): y is [rows,columns], bias [columns] or null (the callers' mod.rs).
    unsafe { k.launch(grid) }
}

fn chunks(rows: usize) -> usize {
    rows.div_ceil(MIN_ROWS).clamp(1, MAX_CHUNKS)
}

/// Elements of the workspace of [`backward`], for dy of `rows` rows; none where no kernel runs.
fn backward_workspace(device: &Device, rows: usize, columns: usize) -> usize {
    if device.runs_kernels() { chunks(rows) * columns } else { 0 }
}

/// The gradient of a bias of `columns` elements, input `i` of a rule, from dy of `rows` rows; the CPU reads those that count.
pub(in crate::ops) fn write_gradient(
    sink: &mut Sink<'_>,
    i: usize,
    dy: &Tensor,
    rows: usize,
    columns: usize,
    live: &Live,
) -> Result<()> {
    let device = dy.device();
    sink.write(i, device, &[columns], DType::F32, |db, accumulate| {
        let mut ws = Tensor::empty(device, &[backward_workspace(device, rows, columns)], DType::F32)?;
        on_device!(
            device,
            cpu => {
                let mut add = accumulate;
                for images in live.ranges() {
                    bias_grad(db.f32s_mut(), add, live.part(dy.f32s(), &images));
                    add = true;
                }
            },
            cuda => backward(db, accumulate, dy, &mut ws),
        );
        Ok(())
    })
}

/// `db (+)= sum of dy's rows`.
fn backward(db: &mut Tensor, accumulate: bool, dy: &Tensor, partial: &mut Tensor) -> Result<()> {
    let columns = db.numel();
    if columns == 0 {
        return Ok(());
    }
    let (device, rows) = (dy.device().clone(), dy.numel() / columns);
    let chunks = chunks(rows);
    let params = GradParams {
        rows: rows as u64,
        rows_per_chunk: rows.div_ceil(chunks) as u64,
        columns: dim_u32("bias", columns)?,
        chunks: dim_u32("bias", chunks)?,
        accumulate: accumulate.into(),
        unused: 0,
    };
    let k = device.gpu().kernel("bias_bwd", dy.dtype()).out(partial).arg(dy).params(&params);
    // SAFETY: bias_bwd(partial, dy, params): partial [chunks,columns] (`backward_workspace`), dy [rows,columns].
    unsafe { k.launch(Grid::blocks(chunks, THREADS).y(columns.div_ceil(COLUMNS)))? }
    let k = device.gpu().kernel("bias_fold", DType::F32).out(db).arg(partial).params(&params);
    // SAFETY: bias_fold(db, partial, params): db [columns], partial as above.
    unsafe { k.launch(Grid::blocks(columns.div_ceil(COLUMNS), THREADS)) }
}

/// Rows that [`bias_grad`] sums one after the other.
const BIAS_ROWS: usize = 256;
/// Columns that it sums at a time: one stack array a level.
const BIAS_COLS: usize = 64;

/// `db[o] (+)= sum over m of dy[m, o]`: sums of 256 rows, added pairwise.
pub fn bias_grad(db: &mut [f32], accumulate: bool, dy: &[f32]) {
    let o = db.len();
    if o == 0 {
        return;
    }
    assert!(dy.len().is_multiple_of(o));
    db.par_chunks_mut(BIAS_COLS).enumerate().for_each(|(i, part)| {
        let sum = column_sums(dy, o, i * BIAS_COLS, part.len());
        for (d, s) in part.iter_mut().zip(sum) {
            *d = if accumulate { *d + s } else { s };
        }
    });
}

fn column_sums(dy: &[f32], o: usize, col: usize, n: usize) -> [f32; BIAS_COLS] {
    let rows = dy.len() / o;
    let mut sum = [0f32; BIAS_COLS];
    if rows <= BIAS_ROWS {
        for row in dy.chunks_exact(o) {
            sum[..n].iter_mut().zip(&row[col..col + n]).for_each(|(s, v)| *s += v);
        }
        return sum;
    }
    let (a, b) = dy.split_at(rows.div_ceil(2) * o);
    let (a, b) = rayon::join(|| column_sums(a, o, col, n), || column_sums(b, o, col, n));
    sum.iter_mut().zip(a.iter().zip(&b)).for_each(|(s, (a, b))| *s = a + b);
    sum
}
