//! Products whose left factor is a gathered matrix: convolution as implicit GEMM, and linear layers (1x1 windows).
//!
//! There are two schedules. *By rows*: all of B is packed once, then tasks take blocks of output rows. *By columns*:
//! tasks take blocks of output columns and each packs its part of B. This one is for a B that is too large to be packed
//! as a whole.

use super::gather::{Place, Window};
use crate::cpu::microkernel::{Factors, Finish, Isa, MR, NR, tile};
use crate::cpu::view::{self, MatMut};

/// Sums are taken in chunks of this many products, so that a chunk's part of A and B stays in the caches.
pub(crate) const KC: usize = 256;
/// Row length of the gathered A: an odd number of cache lines, so that rows do not map to the same cache sets.
const ROW: usize = KC + 16;
/// Columns of one pass over a block of rows: 8 panels, 256 KiB of B.
const NC: usize = 256;

/// Elements of the workspace of one task in flight, for `rows` rows.
pub(crate) fn rows_lane(rows: usize) -> usize {
    rows * ROW
}

/// The map from which the left factor A is gathered.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub map: &'a [f32],
    pub window: Window,
    /// If true, row i of A is row i of `map` (windows of one pixel, stride 1), so nothing is gathered.
    pub plain: bool,
}

impl Source<'_> {
    /// Whether A is read in place. It is copied if its rows would map to the same few cache sets.
    fn direct(&self) -> bool {
        self.plain && !self.window.c.is_multiple_of(512)
    }
}

/// The right factor, packed in panels over its whole depth, and the epilogue of the product (bias and ReLU).
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub panels: &'a [f32],
    pub n: usize,
    pub bias: Option<&'a [f32]>,
    pub relu: bool,
}

/// `c[out(i), :] = A[i, :] B` for `count` rows i from `first` on, where row i of A is the window at `place(i)`. `lane`:
/// [`rows_lane`].
pub(crate) fn rows_product(
    isa: Isa,
    c: &mut MatMut<'_>,
    (first, count): (usize, usize),
    src: Source<'_>,
    p: Product<'_>,
    place: impl Fn(usize) -> Place,
    out: impl Fn(usize) -> usize,
    lane: &mut [f32],
) {
    let depth = src.window.len();
    let tiles = count.div_ceil(MR);
    for k0 in (0..depth).step_by(KC) {
        let k = KC.min(depth - k0);
        let direct = src.direct();
        if !direct {
            for i in 0..count {
                src.window.copy_row(&mut lane[i * ROW..][..k], src.map, place(first + i), k0);
            }
        }
        let (a, rs) = if direct { (&src.map[first * depth + k0..], depth) } else { (&*lane, ROW) };
        let last = k0 + k == depth;
        for n0 in (0..p.n).step_by(NC) {
            for t in 0..tiles {
                // Balanced tiles: no tile is much smaller than the others.
                let (r0, r1) = (t * count / tiles, (t + 1) * count / tiles);
                let mut rows = [0usize; MR];
                (r0..r1).for_each(|r| rows[r - r0] = out(first + r));
                for col in (n0..p.n.min(n0 + NC)).step_by(NR) {
                    let n = NR.min(p.n - col);
                    let b = &p.panels[(col / NR * depth + k0) * NR..][..k * NR];
                    let finish = Finish {
                        accumulate: k0 > 0,
                        bias: p.bias.filter(|_| last).map(|b| &b[col..col + n]),
                        relu: p.relu && last,
                    };
                    let f = Factors { a: &a[r0 * rs..], rs, cs: 1, b, ldb: NR, k };
                    tile(isa, f, c, &rows[..r1 - r0], col, n, finish);
                }
            }
        }
    }
}

/// Workspace of [`columns_product`].
pub(crate) fn columns_workspace(n: usize, width: usize) -> usize {
    view::lanes_len(n.div_ceil(width), KC * width + MR * ROW)
}

/// `y[i, :] = A[i, :] B` for all rows of `y [count, p_n]`, by columns. `pack(panel, col, n, k0)` packs the panel of
/// columns `col .. col + n` from depth `k0` on.
pub(crate) fn columns_product(
    y: MatMut<'_>,
    width: usize,
    src: Source<'_>,
    bias: Option<&[f32]>,
    relu: bool,
    place: impl Fn(usize) -> Place + Sync,
    pack: impl Fn(&mut [f32], usize, usize, usize) + Sync,
    ws: &mut [f32],
) {
    let isa = Isa::detect();
    let depth = src.window.len();
    let count = y.rows();
    let tiles = count.div_ceil(MR);
    let direct = src.direct();
    view::par_cols(y, width, ws, KC * width + MR * ROW, |block, mut c, lane| {
        let (panels, buffer) = lane.split_at_mut(KC * width);
        let col0 = block * width;
        for k0 in (0..depth).step_by(KC) {
            let k = KC.min(depth - k0);
            let last = k0 + k == depth;
            for col in (0..c.cols()).step_by(NR) {
                pack(&mut panels[col * k..][..k * NR], col0 + col, NR.min(c.cols() - col), k0);
            }
            for t in 0..tiles {
                let (r0, r1) = (t * count / tiles, (t + 1) * count / tiles);
                let rows: [usize; MR] = std::array::from_fn(|i| r0 + i);
                if !direct {
                    for r in r0..r1 {
                        src.window.copy_row(&mut buffer[(r - r0) * ROW..][..k], src.map, place(r), k0);
                    }
                }
                let (a, rs) = if direct { (&src.map[r0 * depth + k0..], depth) } else { (&*buffer, ROW) };
                for col in (0..c.cols()).step_by(NR) {
                    let n = NR.min(c.cols() - col);
                    let finish = Finish {
                        accumulate: k0 > 0,
                        bias: bias.filter(|_| last).map(|b| &b[col0 + col..][..n]),
                        relu: relu && last,
                    };
                    let f = Factors { a, rs, cs: 1, b: &panels[col * k..][..k * NR], ldb: NR, k };
                    tile(isa, f, &mut c, &rows[..r1 - r0], col, n, finish);
                }
            }
        }
    });
}

/// Elements of a packed right factor.
pub(crate) fn panels_len(depth: usize, n: usize) -> usize {
    n.div_ceil(NR) * NR * depth
}
