//! Launches of kernels/roi_align.cu.

use super::{MAX_LEVELS, RoiAlignBwd, RoiGradient};
use crate::device::Device;
use crate::device::gpu::{Grid, Launch, dim_u32};
use crate::error::{Error, Result};
use crate::tape::Var;
use crate::tensor::{DType, Tensor};

/// Threads of a forward block: with 7 bins a row and 256 channels of f32, each has 4 vectors of 2 rows.
const THREADS: u32 = 224;
/// Bins of a forward block, about.
const BLOCK_BINS: usize = 16;
const ATOMIC_THREADS: u32 = 256;

/// Pixels of a tile, and threads of its block: TILE_H, TILE_W, GATHER_THREADS of the kernel.
const TILE: (usize, usize) = (4, 8);
const GATHER_THREADS: u32 = 256;
/// Bytes of the kernel's lists, which come before the tables.
const GATHER_BYTES: usize = 8320;
/// Most RoIs whose tables a block holds at once: a lane each.
const BATCH: usize = 32;
/// Shared memory that any device gives a block without being asked.
const SHARED_BYTES: usize = 48 * 1024;

/// Mirror of the kernels' RoiAlignParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rois: u32,
    per_image: u32,
    c: u32,
    ph: u32,
    pw: u32,
    sampling_ratio: u32,
    aligned: u32,
    levels: u32,
    finest_scale_px: f32,
    bin_rows: u32,
    weights: u32,
    batch: u32,
    h: [u32; MAX_LEVELS],
    w: [u32; MAX_LEVELS],
    stride_px: [f32; MAX_LEVELS],
    first_row: [u32; MAX_LEVELS],
    first_tile: [u32; MAX_LEVELS],
}

/// The kernel parameters and the launch sizes.
struct Setup {
    params: Params,
    /// Bytes of shared memory of the forward kernel.
    bin_tables: usize,
    /// Bytes of shared memory of the gathering backward kernel.
    gather: usize,
    /// Number of tiles of all levels and images.
    tiles: usize,
}

fn setup(s: &RoiAlignBwd) -> Result<Setup> {
    let dim = |n| dim_u32("roi_align", n);
    let (p, per_image) = (&s.p, s.rois.dim(1));
    let bin_rows = (BLOCK_BINS / p.pw).clamp(1, p.ph);
    let largest = |side: fn(&super::cpu::LevelShape) -> usize| s.shapes.iter().map(side).max().unwrap_or(0);
    let bins = bin_rows + p.pw;
    // Neighbouring bins share two pixels at most.
    let weights = largest(|l| l.h) + largest(|l| l.w) + 2 * bins;
    let bin_tables = 4 * (3 * bins + 1 + weights);
    let roi_tables = 4 * (TILE.0 * p.ph + TILE.1 * p.pw);
    let batch = ((SHARED_BYTES - GATHER_BYTES) / roi_tables).min(BATCH);
    if bin_tables > SHARED_BYTES || batch == 0 {
        let message = format!("tables of {}×{} bins on {weights} pixels do not fit a GPU's shared memory", p.ph, p.pw);
        return Err(Error::value("roi_align", message));
    }
    dim(s.n * per_image * p.ph * p.pw)?; // rows of y
    let mut params = Params {
        rois: dim(s.n * per_image)?,
        per_image: dim(per_image)?,
        c: dim(s.c)?,
        ph: dim(p.ph)?,
        pw: dim(p.pw)?,
        sampling_ratio: dim(p.sampling_ratio)?,
        aligned: u32::from(p.aligned),
        levels: dim(s.shapes.len())?,
        finest_scale_px: p.finest_scale_px,
        bin_rows: dim(bin_rows)?,
        weights: dim(weights)?,
        batch: dim(batch)?,
        h: [0; MAX_LEVELS],
        w: [0; MAX_LEVELS],
        stride_px: [1.0; MAX_LEVELS],
        first_row: [0; MAX_LEVELS],
        first_tile: [0; MAX_LEVELS],
    };
    let (mut rows, mut tiles) = (0, 0);
    for (i, l) in s.shapes.iter().enumerate() {
        (params.h[i], params.w[i], params.stride_px[i]) = (dim(l.h)?, dim(l.w)?, l.stride_px);
        (params.first_row[i], params.first_tile[i]) = (dim(rows)?, dim(tiles)?);
        rows += l.h.next_multiple_of(TILE.0); // the last tile of a level ends before the next level
        tiles += s.n * l.h.div_ceil(TILE.0) * l.w.div_ceil(TILE.1);
    }
    Ok(Setup { params, bin_tables, gather: GATHER_BYTES + batch * roi_tables, tiles })
}

/// Channels that a thread reads at once.
fn vector(c: usize, dtype: DType) -> usize {
    let vector = 16 / dtype.bytes();
    if c.is_multiple_of(vector) { vector } else { 1 }
}

/// The levels' addresses, null behind the last.
fn inputs<'a>(mut k: Launch<'a>, levels: &[&Var]) -> Launch<'a> {
    for l in 0..MAX_LEVELS {
        k = k.opt(levels.get(l).map(|x| x.value()));
    }
    k
}

fn outputs<'a>(mut k: Launch<'a>, levels: &mut [Tensor]) -> Launch<'a> {
    for l in 0..MAX_LEVELS {
        k = k.out_opt(levels.get_mut(l));
    }
    k
}

pub(super) fn forward(y: &mut Tensor, levels: &[&Var], s: &RoiAlignBwd) -> Result<()> {
    let (device, setup) = (y.device().clone(), setup(s)?);
    let rows = s.p.ph.div_ceil(setup.params.bin_rows as usize);
    let grid = Grid::blocks(if y.numel() == 0 { 0 } else { y.dim(0) }, THREADS).y(rows).shared(setup.bin_tables);
    let k = inputs(device.gpu().kernel("roi_align_fwd", y.dtype()).out(y), levels);
    let k = k.arg(&s.rois).arg(&s.valid).params(&setup.params);
    // SAFETY: roi_align_fwd(y, eight levels, rois, valid, params): y [N·S,PH,PW,C], levels [N,H_l,W_l,C], none empty,
    // rois [N,S,4], valid [N,S] (checked in mod.rs); shared memory for the tables that `setup` counts.
    unsafe { k.launch(grid) }
}

/// Gather: which pixels a RoI touches. Atomic: sums in f32 for levels of 16 bits, else nothing (dx holds them).
pub(super) fn workspace(device: &Device, s: &RoiAlignBwd, dtype: DType) -> Result<Vec<Tensor>> {
    match s.p.gradient {
        RoiGradient::Gather => Ok(vec![Tensor::empty(device, &[s.n, s.rois.dim(1), 4], DType::I32)?]),
        RoiGradient::Atomic if dtype == DType::F32 => Ok(Vec::new()),
        RoiGradient::Atomic => {
            s.shapes.iter().map(|l| Tensor::empty(device, &[s.n, l.h, l.w, s.c], DType::F32)).collect()
        }
    }
}

pub(super) fn backward(dxs: &mut [Tensor], workspace: &mut [Tensor], dy: &Tensor, s: &RoiAlignBwd) -> Result<()> {
    let (gpu, setup) = (dy.device().gpu(), setup(s)?);
    let place = &mut workspace[0];
    let k = gpu.kernel("roi_align_place", DType::I32).out(place).arg(&s.rois).arg(&s.valid).params(&setup.params);
    // SAFETY: roi_align_place(place, rois, valid, params): [N,S,4], [N,S,4], [N,S] (`workspace`, and checked in
    // mod.rs).
    unsafe { k.launch(Grid::threads(setup.params.rois as usize, 128))? };

    let slices = s.c.div_ceil(32 * vector(s.c, dy.dtype()));
    let grid = Grid::blocks(setup.tiles, GATHER_THREADS).y(slices).shared(setup.gather);
    let k = outputs(gpu.kernel("roi_align_bwd", dy.dtype()), dxs);
    let k = k.arg(dy).arg(&s.rois).arg(place).params(&setup.params);
    // SAFETY: roi_align_bwd(eight dx, dy, rois, place, params): dx [N,H_l,W_l,C] and place as mod.rs and `workspace`
    // make them, dy [N·S,PH,PW,C] (the tape checks it), rois [N,S,4] (checked in mod.rs); shared memory as `setup`
    // counts it.
    unsafe { k.launch(grid) }
}

pub(super) fn backward_atomic(
    dxs: &mut [Tensor],
    workspace: &mut [Tensor],
    dy: &Tensor,
    s: &RoiAlignBwd,
) -> Result<()> {
    let (gpu, setup) = (dy.device().gpu(), setup(s)?);
    let sums = if workspace.is_empty() { &mut *dxs } else { &mut *workspace };
    for sum in &mut *sums {
        sum.fill_bytes(0)?;
    }
    let rows = s.p.ph.div_ceil(setup.params.bin_rows as usize);
    let rois = if dy.numel() == 0 { 0 } else { dy.dim(0) };
    let grid = Grid::blocks(rois, ATOMIC_THREADS).y(rows).shared(setup.bin_tables);
    let k = outputs(gpu.kernel("roi_align_bwd_atomic", dy.dtype()), sums);
    let k = k.arg(dy).arg(&s.rois).arg(&s.valid).params(&setup.params);
    // SAFETY: roi_align_bwd_atomic(eight sums in f32, dy, rois, valid, params): sums [N,H_l,W_l,C] as mod.rs and
    // `workspace` make them, dy [N·S,PH,PW,C] (the tape checks it), rois [N,S,4], valid [N,S] (checked in mod.rs).
    unsafe { k.launch(grid)? };
    for (dx, sum) in dxs.iter_mut().zip(workspace) {
        let n = dx.numel();
        let k = gpu.kernel("roi_align_round", dx.dtype()).out(dx).arg(sum).params(&(n as i64));
        // SAFETY: roi_align_round(dx, sum, n): n elements each, sum of f32 (`workspace`).
        unsafe { k.launch(Grid::stride(n, ATOMIC_THREADS))? };
    }
    Ok(())
}
