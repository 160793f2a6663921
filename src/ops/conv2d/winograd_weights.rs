//! The weight gradient of a 3x3 convolution of stride 1 by Winograd's F(3x3,4x4): 36 products [O, tiles] x [tiles, C].
//!
//! The tiles are taken in fixed groups whose transforms fit the workspace. For each group, tasks over blocks of output
//! channels form the products of all points, transform them back and add them to dw.

use super::transform::{self, OUT, POINTS};
use super::winograd::{Geometry, InputTile};
use crate::cpu::microkernel::{Factors, Finish, Isa, MR, NR, spread, tile};
use crate::cpu::simd::F32x16 as V;
use crate::cpu::view::{self, MatMut};

/// Input channels of one pass of a task.
const CB: usize = 64;
/// Most tiles of a group, the depth of its products.
const MAX_GROUP: usize = 256;
/// The transforms of a group take at most this many elements (16 MiB).
const GROUP_LEN: usize = 4 << 20;
/// Tiles that a task of the transforms takes.
const STEP: usize = 8;

/// How the work is cut up.
struct Split {
    groups: usize,
    /// Tiles of a group.
    group: usize,
    /// Panels of NR channels: of x, of dy.
    x_panels: usize,
    dy_panels: usize,
}

impl Split {
    fn new(g: &Geometry) -> Split {
        let (x_panels, dy_panels) = (g.c.div_ceil(NR), g.o.div_ceil(NR));
        let fit = (GROUP_LEN / (POINTS * NR * (x_panels + dy_panels))).clamp(STEP, MAX_GROUP);
        let groups = g.tiles().div_ceil(fit).max(1);
        let group = g.tiles().div_ceil(groups).next_multiple_of(STEP);
        Split { groups: g.tiles().div_ceil(group), group, x_panels, dy_panels }
    }
    /// Elements of one point of a panel: its tiles, side by side.
    fn panel(&self) -> usize {
        spread(self.group * NR)
    }
}

/// Products of one task at a time: [`POINTS`] x NR output channels x CB input channels.
const LANE: usize = POINTS * LANE_POINT;
/// One point of them; a cache line more than they need, so that the points fall on different cache sets.
const LANE_POINT: usize = NR * CB + 16;

/// Workspace of [`gradient`].
pub(crate) fn workspace(g: &Geometry) -> usize {
    let s = Split::new(g);
    POINTS * s.panel() * (s.x_panels + s.dy_panels) + view::lanes_len(s.dy_panels, LANE)
}

/// `dw (+)= gradient`, for the forward geometry `g`.
pub(crate) fn gradient(dw: &mut [f32], accumulate: bool, x: &[f32], dy: &[f32], ws: &mut [f32], g: &Geometry) {
    let isa = Isa::detect();
    let s = Split::new(g);
    // Transforms: [panel, point, tile, NR], so that the factors of every product are read from start to end.
    let (vx, ws) = ws.split_at_mut(POINTS * s.x_panels * s.panel());
    let (vdy, ws) = ws.split_at_mut(POINTS * s.dy_panels * s.panel());
    for group in 0..s.groups {
        let start = group * s.group;
        let tiles = s.group.min(g.tiles() - start);
        let view = MatMut::new(vx, POINTS * s.x_panels, tiles * NR, s.panel());
        view::par_cols(view, STEP * NR, &mut [], 0, |task, mut v, _| {
            for i in 0..v.cols() / NR {
                InputTile::new(g, start + task * STEP + i).transform(x, |p, c0, value| {
                    value.store(&mut v.row_mut(c0 / NR * POINTS + p)[i * NR + c0 % NR..]);
                });
            }
        });
        let view = MatMut::new(vdy, POINTS * s.dy_panels, tiles * NR, s.panel());
        view::par_cols(view, STEP * NR, &mut [], 0, |task, mut v, _| {
            for i in 0..v.cols() / NR {
                transform_dy(g, start + task * STEP + i, dy, |p, o0, value| {
                    value.store(&mut v.row_mut(o0 / NR * POINTS + p)[i * NR + o0 % NR..]);
                });
            }
        });
        let (vx, vdy) = (&*vx, &*vdy);
        let filter = 9 * g.c;
        let add = accumulate || group > 0;
        view::par_blocks(dw, g.o * filter, NR * filter, ws, LANE, |_, block, dw, m| {
            let n = dw.len() / filter;
            let row_tiles = n.div_ceil(MR);
            for c0 in (0..g.c).step_by(CB) {
                let cb = CB.min(g.c - c0);
                for p in 0..POINTS {
                    let mut out = MatMut::new(&mut m[p * LANE_POINT..][..n * CB], n, CB, CB);
                    for r in 0..row_tiles {
                        let (r0, r1) = (r * n / row_tiles, (r + 1) * n / row_tiles);
                        let rows: [usize; MR] = std::array::from_fn(|i| r0 + i);
                        let a = &vdy[(block * POINTS + p) * s.panel()..][..s.panel()];
                        for j in (0..cb).step_by(NR) {
                            let b = &vx[((c0 + j) / NR * POINTS + p) * s.panel()..][..s.panel()];
                            let f = Factors { a: &a[r0..], rs: 1, cs: NR, b, ldb: NR, k: tiles };
                            let wide = NR.min(cb - j).next_multiple_of(16);
                            tile(isa, f, &mut out, &rows[..r1 - r0], j, wide, Finish::default());
                        }
                    }
                }
                for o in 0..n {
                    write_filter(&m[o * CB..], LANE_POINT, &mut dw[o * filter..][..filter], (g.c, c0, cb), add);
                }
            }
        });
    }
}

/// Transforms tile `t` of dy.
#[inline(always)]
fn transform_dy(g: &Geometry, t: usize, dy: &[f32], mut store: impl FnMut(usize, usize, V)) {
    let (image, ty, tx) = g.locate(t);
    let (h, w) = (ty * OUT, tx * OUT);
    let (rows, cols) = ((g.oh - h).min(OUT), (g.ow - w).min(OUT));
    let pixel = (image * g.oh + h) * g.ow + w;
    for o0 in (0..g.o).step_by(16) {
        let n = (g.o - o0).min(16);
        let load = |r: usize, c: usize| {
            if r < rows && c < cols {
                V::load_partial(&dy[(pixel + r * g.ow + c) * g.o + o0..][..n])
            } else {
                V::zero()
            }
        };
        transform::kernel4_2d(load, |p, v| store(p, o0, v));
    }
}

/// Transforms the sums of one output channel back and writes channels `c0 .. c0 + n` of its filter `[3, 3, c]`.
fn write_filter(m: &[f32], point_stride: usize, filter: &mut [f32], (c, c0, n): (usize, usize, usize), add: bool) {
    for j in (0..n).step_by(16) {
        let lanes = (n - j).min(16);
        transform::output3_2d(
            |p| V::load(&m[p * point_stride + j..]),
            |kh, kw, v| {
                let dst = &mut filter[(kh * 3 + kw) * c + c0 + j..][..lanes];
                let v = if add { v + V::load_partial(dst) } else { v };
                v.store_partial(dst);
            },
        );
    }
}
