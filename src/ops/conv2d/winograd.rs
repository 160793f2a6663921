//! 3x3 convolution of stride 1 by Winograd's F(4x4,3x3): 36 products of matrices [tiles, C] x [C, O] take the place of
//! 144 multiplications a tile and pair of channels. Forward and data gradient (a convolution with the turned kernel).
//!
//! Two schedules. *By tiles* (large maps): the weights are transformed first, then each task takes some rows of tiles
//! through all three steps. *By channels* (small maps, many channels): all tiles are transformed first, then each task
//! takes some output channels, whose weights it transforms itself: they are larger than the map.

use super::transform::{self, IN, OUT, POINTS};
use crate::cpu::microkernel::{Factors, Finish, Isa, MR, NR, spread, tile};
use crate::cpu::simd::F32x16 as V;
use crate::cpu::view::{self, MatMut};

/// Input channels summed by one call of the micro-kernel.
const KC: usize = 256;
/// Tiles of a pass of the schedule by tiles.
const PASS: usize = 2 * MR;
/// Output channels of a pass.
const OB: usize = 64;
/// Input channels whose weights the schedule by channels transforms at a time.
const KB: usize = 64;

/// The map that a convolution reads and the one that it writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub oh: usize,
    pub ow: usize,
    pub o: usize,
    /// Padding at the top and on the left; at the other sides, what the sizes make it.
    pub pad: usize,
}

/// Where the kernel of output channel o and input channel c is.
#[derive(Clone, Copy)]
pub(crate) enum Kernels<'a> {
    /// `w[o, kh, kw, c]`.
    Forward(&'a [f32]),
    /// `w[c, 2 - kh, 2 - kw, o]`: the data gradient, for which the channels change places.
    Turned(&'a [f32]),
}

impl Geometry {
    pub fn tile_rows(&self) -> usize {
        self.oh.div_ceil(OUT)
    }
    pub fn tile_cols(&self) -> usize {
        self.ow.div_ceil(OUT)
    }
    pub fn tiles(&self) -> usize {
        self.n * self.tile_rows() * self.tile_cols()
    }
    /// Whether this algorithm is the faster one (measured): not for a few channels, where the transforms are most of
    /// the work, and not for maps that fill their tiles badly. Never for nothing: the schedules divide by their tiles.
    pub fn pays(&self) -> bool {
        let tiles = self.tiles();
        tiles > 0 && self.c >= 8 && self.o >= 8 && 6 * tiles <= self.n * self.oh * self.ow
    }
    /// Elements of one point of a block of up to MR tiles.
    fn block_len(&self) -> usize {
        MR * spread(self.c)
    }
    fn by_channels(&self) -> bool {
        self.tiles() <= 128 && self.o >= 128
    }
    /// Rows of tiles that a task by tiles takes: at least a pass, if the map has that many, but enough tasks.
    fn task_rows(&self) -> usize {
        PASS.div_ceil(self.tile_cols()).min(self.tile_rows()).max(1)
    }
    fn weights_len(&self) -> usize {
        self.o.div_ceil(NR) * panel_len(self.c)
    }
    /// Elements of one point of `tiles` tiles.
    fn point_len(&self, tiles: usize) -> usize {
        spread(tiles.div_ceil(MR) * self.block_len())
    }
    fn lane_len(&self) -> usize {
        if self.by_channels() {
            OB / NR * panel_len(KB) + POINTS * spread(self.tiles() * OB)
        } else {
            let tiles = PASS.min(self.task_rows() * self.tile_cols());
            POINTS * (self.point_len(tiles) + spread(tiles * OB))
        }
    }
    pub fn workspace(&self) -> usize {
        if self.by_channels() {
            POINTS * self.point_len(self.tiles()) + view::lanes_len(self.o.div_ceil(OB), self.lane_len())
        } else {
            let tasks = self.n * self.tile_rows().div_ceil(self.task_rows());
            self.weights_len() + view::lanes_len(tasks, self.lane_len())
        }
    }
    /// Image, row and column of tile `t`.
    pub fn locate(&self, t: usize) -> (usize, usize, usize) {
        let (rows, cols) = (self.tile_rows(), self.tile_cols());
        (t / (rows * cols), t / cols % rows, t % cols)
    }
}

/// Elements of one point of a panel of kernels. The points of all buffers here are [`spread`]: the transforms write or
/// read one line of each point, and lines at distances of powers of two would map to the same cache set.
fn panel_point(depth: usize) -> usize {
    spread(depth * NR)
}

/// Elements of a panel of kernels.
fn panel_len(depth: usize) -> usize {
    POINTS * panel_point(depth)
}

/// A tile of the input map. It is transformed 16 channels at a time.
pub(crate) struct InputTile {
    /// Offset of the top left pixel, which may lie outside the map.
    base: isize,
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    line: usize,
    c: usize,
}

impl InputTile {
    pub fn new(g: &Geometry, t: usize) -> InputTile {
        let (image, ty, tx) = g.locate(t);
        let (h0, w0) = ((ty * OUT) as isize - g.pad as isize, (tx * OUT) as isize - g.pad as isize);
        let valid = |start: isize, size: usize| {
            let a = (-start).clamp(0, IN as isize) as usize;
            a..((size as isize - start).clamp(a as isize, IN as isize) as usize)
        };
        InputTile {
            base: (((image * g.h) as isize + h0) * g.w as isize + w0) * g.c as isize,
            rows: valid(h0, g.h),
            cols: valid(w0, g.w),
            line: g.w * g.c,
            c: g.c,
        }
    }

    /// Hands `store(point, first channel, values)` the transform of all channels; channels beyond the last are 0.
    #[inline(always)]
    pub fn transform(&self, x: &[f32], mut store: impl FnMut(usize, usize, V)) {
        let inside = self.rows == (0..IN) && self.cols == (0..IN);
        for c0 in (0..self.c).step_by(16) {
            let n = (self.c - c0).min(16);
            let offset = |r: usize, c: usize| (self.base + (r * self.line + c * self.c + c0) as isize) as usize;
            if inside && n == 16 {
                transform::input_2d(|r, c| V::load(&x[offset(r, c)..]), |p, v| store(p, c0, v));
            } else {
                let load = |r: usize, c: usize| {
                    if self.rows.contains(&r) && self.cols.contains(&c) {
                        V::load_partial(&x[offset(r, c)..][..n])
                    } else {
                        V::zero()
                    }
                };
                transform::input_2d(load, |p, v| store(p, c0, v));
            }
        }
    }
}

/// Transforms tiles `t0..t1` (at most MR) into a block: row p of `v` holds point p, tile after tile.
fn transform_block(g: &Geometry, x: &[f32], (t0, t1): (usize, usize), v: &mut MatMut<'_>) {
    let stride = spread(g.c);
    for t in t0..t1 {
        InputTile::new(g, t).transform(x, |p, c0, value| {
            value.store(&mut v.row_mut(p)[(t - t0) * stride + c0..]);
        });
    }
}

/// Transforms the kernels of `n <= NR` output channels from `o0` and input channels `c0 .. c0 + depth` into one panel a
/// point: `u[point * panel_point(depth) + c * NR + o]`.
fn transform_kernels(
    g: &Geometry,
    kernels: Kernels<'_>,
    (o0, n): (usize, usize),
    c0: usize,
    depth: usize,
    u: &mut [f32],
) {
    if n < NR {
        u.fill(0.0);
    }
    let point = panel_point(depth);
    for j in (0..n).step_by(16) {
        let lanes = (n - j).min(16);
        match kernels {
            Kernels::Turned(w) => {
                for c in 0..depth {
                    let load = |r: usize, q: usize| {
                        V::load_partial(&w[((c0 + c) * 9 + 8 - (r * 3 + q)) * g.o + o0 + j..][..lanes])
                    };
                    transform::kernel_2d(load, |p, v| v.store(&mut u[p * point + c * NR + j..]));
                }
            }
            Kernels::Forward(w) => {
                for cb in (0..depth).step_by(16) {
                    let m = (depth - cb).min(16);
                    let mut turned = [[V::zero(); 16]; 9];
                    for (tap, t) in turned.iter_mut().enumerate() {
                        let at = |o: usize| ((o0 + j + o) * 9 + tap) * g.c + c0 + cb;
                        let row = |o: usize| if o < lanes { V::load_partial(&w[at(o)..][..m]) } else { V::zero() };
                        *t = V::transpose(std::array::from_fn(row));
                    }
                    for c in 0..m {
                        let load = |r: usize, q: usize| turned[r * 3 + q][c];
                        transform::kernel_2d(load, |p, v| v.store(&mut u[p * point + (cb + c) * NR + j..]));
                    }
                }
            }
        }
    }
}

/// The operations applied to the outputs: bias and ReLU.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    pub bias: Option<&'a [f32]>,
    pub relu: bool,
}

/// Writes the outputs of one tile: channels `o0 ..` from `m[point * point_stride + ..]` to `y`. Row 0 of `y` is pixel
/// `first` of the map, and column 0 is output channel `o0`.
fn write_tile(
    g: &Geometry,
    t: usize,
    m: &[f32],
    point_stride: usize,
    y: &mut MatMut<'_>,
    (first, col0): (usize, usize),
    (o0, n): (usize, usize),
    e: Epilogue<'_>,
) {
    let (image, ty, tx) = g.locate(t);
    let (h, w) = (ty * OUT, tx * OUT);
    let pixel = (image * g.oh + h) * g.ow + w - first;
    let (rows, cols) = ((g.oh - h).min(OUT), (g.ow - w).min(OUT));
    for j in (0..n).step_by(16) {
        let lanes = (n - j).min(16);
        let bias = e.bias.map_or(V::zero(), |b| V::load_partial(&b[o0 + j..][..lanes]));
        transform::output_2d(
            |p| V::load(&m[p * point_stride + j..]),
            |r, c, v| {
                if r < rows && c < cols {
                    let mut v = v + bias;
                    if e.relu {
                        v = V::zero().max(v); // NaN stays
                    }
                    v.store_partial(&mut y.row_mut(pixel + r * g.ow + c)[col0 + j..][..lanes]);
                }
            },
        );
    }
}

/// The products of all points of a block of tiles: `m[point, i, o] (+)= sum_c v[point, i, c] u[point, c, o]`.
struct PointProducts<'a> {
    isa: Isa,
    /// Row p: point p of the blocks, `block_len` elements each.
    v: &'a [f32],
    v_stride: usize,
    /// `[panel, point, depth, NR]`: see [`transform_kernels`].
    u: &'a [f32],
    /// Input channels `c0 .. c0 + depth`, which `u` holds.
    c0: usize,
    depth: usize,
    /// Output channels.
    n: usize,
}

impl PointProducts<'_> {
    /// `tiles` tiles in balanced blocks; `m` is `[point, tiles, OB]`.
    fn run(&self, g: &Geometry, tiles: usize, m: &mut [f32]) {
        let blocks = tiles.div_ceil(MR);
        let rs = spread(g.c);
        let (panel, point) = (panel_len(self.depth), panel_point(self.depth));
        for p in 0..POINTS {
            let mut out = MatMut::new(&mut m[p * spread(tiles * OB)..][..tiles * OB], tiles, OB, OB);
            for b in 0..blocks {
                let (t0, t1) = (b * tiles / blocks, (b + 1) * tiles / blocks);
                let rows: [usize; MR] = std::array::from_fn(|i| t0 + i);
                for k0 in (0..self.depth).step_by(KC) {
                    let k = KC.min(self.depth - k0);
                    let a = &self.v[p * self.v_stride + b * g.block_len() + self.c0 + k0..];
                    for j in (0..self.n).step_by(NR) {
                        let b = &self.u[j / NR * panel + p * point + k0 * NR..][..k * NR];
                        let f = Factors { a, rs, cs: 1, b, ldb: NR, k };
                        let finish = Finish { accumulate: self.c0 + k0 > 0, ..Finish::default() };
                        let wide = NR.min(self.n - j).next_multiple_of(16);
                        tile(self.isa, f, &mut out, &rows[..t1 - t0], j, wide, finish);
                    }
                }
            }
        }
    }
}

/// The convolution. `y` is overwritten.
pub(crate) fn convolve(y: &mut [f32], x: &[f32], kernels: Kernels<'_>, e: Epilogue<'_>, ws: &mut [f32], g: &Geometry) {
    if g.by_channels() { by_channels(y, x, kernels, e, ws, g) } else { by_tiles(y, x, kernels, e, ws, g) }
}

fn by_tiles(y: &mut [f32], x: &[f32], kernels: Kernels<'_>, e: Epilogue<'_>, ws: &mut [f32], g: &Geometry) {
    let isa = Isa::detect();
    let (u, ws) = ws.split_at_mut(g.weights_len());
    view::par_blocks(u, g.weights_len(), panel_len(g.c), &mut [], 0, |_, i, u, _| {
        transform_kernels(g, kernels, (i * NR, NR.min(g.o - i * NR)), 0, g.c, u);
    });
    let u = &*u;
    let (rows, cols) = (g.task_rows(), g.tile_cols());
    let line = g.ow * g.o;
    view::par_blocks(y, g.oh * line, rows * OUT * line, ws, g.lane_len(), |image, i, part, lane| {
        let pixels = part.len() / g.o;
        let mut y = MatMut::new(part, pixels, g.o, g.o);
        let first = (image * g.oh + i * rows * OUT) * g.ow;
        let task_rows = rows.min(g.tile_rows() - i * rows);
        let (start, count) = ((image * g.tile_rows() + i * rows) * cols, task_rows * cols);
        let passes = count.div_ceil(PASS);
        for pass in 0..passes {
            let (p0, p1) = (pass * count / passes, (pass + 1) * count / passes);
            let (tiles, blocks) = (p1 - p0, (p1 - p0).div_ceil(MR));
            let (v, m) = lane.split_at_mut(POINTS * g.point_len(tiles));
            let v_stride = g.point_len(tiles);
            let mut vm = MatMut::new(v, POINTS, v_stride, v_stride);
            for b in 0..blocks {
                let range = (start + p0 + b * tiles / blocks, start + p0 + (b + 1) * tiles / blocks);
                transform_block(g, x, range, &mut vm.part(0..POINTS, b * g.block_len()..(b + 1) * g.block_len()));
            }
            for o0 in (0..g.o).step_by(OB) {
                let n = OB.min(g.o - o0);
                let u = &u[o0 / NR * panel_len(g.c)..];
                PointProducts { isa, v, v_stride, u, c0: 0, depth: g.c, n }.run(g, tiles, m);
                for t in 0..tiles {
                    write_tile(g, start + p0 + t, &m[t * OB..], spread(tiles * OB), &mut y, (first, o0), (o0, n), e);
                }
            }
        }
    });
}

fn by_channels(y: &mut [f32], x: &[f32], kernels: Kernels<'_>, e: Epilogue<'_>, ws: &mut [f32], g: &Geometry) {
    let isa = Isa::detect();
    let tiles = g.tiles();
    let blocks = tiles.div_ceil(MR);
    let v_stride = g.point_len(tiles);
    let (v, ws) = ws.split_at_mut(POINTS * v_stride);
    view::par_cols(
        MatMut::new(v, POINTS, blocks * g.block_len(), v_stride),
        g.block_len(),
        &mut [],
        0,
        |b, mut v, _| {
            transform_block(g, x, (b * tiles / blocks, (b + 1) * tiles / blocks), &mut v);
        },
    );
    let v = &*v;
    let pixels = g.n * g.oh * g.ow;
    view::par_cols(MatMut::new(y, pixels, g.o, g.o), OB, ws, g.lane_len(), |task, mut y, lane| {
        let (u, m) = lane.split_at_mut(OB / NR * panel_len(KB));
        let (o0, n) = (task * OB, y.cols());
        for c0 in (0..g.c).step_by(KB) {
            let depth = KB.min(g.c - c0);
            for j in (0..n).step_by(NR) {
                let u = &mut u[j / NR * panel_len(depth)..][..panel_len(depth)];
                transform_kernels(g, kernels, (o0 + j, NR.min(n - j)), c0, depth, u);
            }
            PointProducts { isa, v, v_stride, u, c0, depth, n }.run(g, tiles, m);
        }
        for t in 0..tiles {
            write_tile(g, t, &m[t * OB..], spread(tiles * OB), &mut y, (0, 0), (o0, n), e);
        }
    });
}
