//! The gradient of the weights as a product over pixels: `dw[o, k] = sum_m dy[m, o] A[m, k]`, A the gathered windows.
//!
//! Pixels are cut into `groups` fixed ranges with a partial sum each (their number follows from the shape), added at
//! the end in order; within a range they are summed in chunks.

use super::gather::Place;
use super::implicit::Source;
use crate::cpu::microkernel::{Factors, Finish, Isa, MR, NR, tile};
use crate::cpu::simd;
use crate::cpu::view::{self, MatMut};

/// Pixels summed by one call of the micro-kernel.
const PC: usize = 256;
/// A packed panel of dy: the channels of two tiles in rows of NR. Panels are a cache line longer than their rows, so
/// that the same row of different panels falls on different cache sets.
const DY_PANEL: usize = PC * NR + 16;
/// A packed panel of A.
const A_PANEL: usize = PC * NR + 16;
/// Columns (elements of the window) of a task.
const NC: usize = 256;
/// Rows (output channels) of a task.
const OC: usize = 256;
/// Partial sums together take at most this many elements (16 MiB).
const MAX_PARTIALS: usize = 4 << 20;
/// Tasks wanted: enough to balance any machine that the lanes can feed.
const TASKS: usize = 32;

/// How a gradient of `[o, k]` over `m` pixels is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    groups: usize,
    pixels: usize,
    oc: usize,
    nc: usize,
}

impl Split {
    fn new(m: usize, o: usize, k: usize) -> Split {
        let (oc, nc) = (o.clamp(1, OC), k.clamp(1, NC).next_multiple_of(NR).min(NC));
        let blocks = o.div_ceil(oc) * k.div_ceil(nc);
        let by_memory = MAX_PARTIALS / (o * k).max(1);
        let groups = (TASKS / blocks.max(1)).min(by_memory).min(m.div_ceil(2 * PC)).max(1);
        let pixels = m.div_ceil(groups).max(1);
        Split { groups: m.div_ceil(pixels).max(1), pixels, oc, nc }
    }
    fn lane(&self) -> usize {
        self.oc.div_ceil(2 * MR) * DY_PANEL + self.nc.div_ceil(NR) * A_PANEL
    }
    fn partials(&self, o: usize, k: usize) -> usize {
        if self.groups > 1 { self.groups * o * k } else { 0 }
    }
    fn tasks(&self, o: usize, k: usize) -> usize {
        self.groups * o.div_ceil(self.oc) * k.div_ceil(self.nc)
    }
}

/// Workspace of [`gradient`].
pub(crate) fn workspace(m: usize, o: usize, k: usize) -> usize {
    let s = Split::new(m, o, k);
    s.partials(o, k) + view::lanes_len(s.tasks(o, k), s.lane())
}

/// `dw[o, k] (+)= sum over m of dy[m, o] A[m, k]`.
pub(crate) fn gradient(
    dw: &mut [f32],
    accumulate: bool,
    src: Source<'_>,
    dy: &[f32],
    (m, o): (usize, usize),
    place: impl Fn(usize) -> Place + Sync,
    ws: &mut [f32],
) {
    let k = src.window.len();
    let s = Split::new(m, o, k);
    let product = Product { src, dy, m, o, place, s, isa: Isa::detect() };
    let (partials, ws) = ws.split_at_mut(s.partials(o, k));
    let lane_len = s.lane();
    let target = if s.groups > 1 { &mut *partials } else { &mut *dw };
    let add = accumulate && s.groups == 1;
    if s.groups > 1 || k.div_ceil(s.nc) == 1 {
        // Blocks of whole rows of one partial (or of dw).
        view::par_blocks(target, o * k, s.oc * k, ws, lane_len, |group, ob, block, lane| {
            let rows = block.len() / k;
            let mut c = MatMut::new(block, rows, k, k);
            for n0 in (0..k).step_by(s.nc) {
                let at = Corner { group, o0: ob * s.oc, n0 };
                product.run(at, c.part(0..rows, n0..k.min(n0 + s.nc)), add, lane);
            }
        });
    } else {
        view::par_cols(MatMut::new(target, o, k, k), s.nc, ws, lane_len, |nb, mut c, lane| {
            for ob in 0..o.div_ceil(s.oc) {
                let cols = c.cols();
                let at = Corner { group: 0, o0: ob * s.oc, n0: nb * s.nc };
                product.run(at, c.part(ob * s.oc..o.min((ob + 1) * s.oc), 0..cols), add, lane);
            }
        });
    }
    if s.groups > 1 {
        add_partials(dw, accumulate, partials);
    }
}

/// Where a task's block of the result begins.
#[derive(Clone, Copy)]
struct Corner {
    group: usize,
    /// First output channel.
    o0: usize,
    /// First column: element of the window.
    n0: usize,
}

/// Everything that the tasks of one gradient share.
struct Product<'a, P> {
    src: Source<'a>,
    dy: &'a [f32],
    m: usize,
    o: usize,
    place: P,
    s: Split,
    isa: Isa,
}

impl<P: Fn(usize) -> Place + Sync> Product<'_, P> {
    /// One task: the sum over the group's pixels, in chunks of [`PC`], into `c`.
    fn run(&self, at: Corner, mut c: MatMut<'_>, add: bool, lane: &mut [f32]) {
        let (oc, nc) = (c.rows(), c.cols());
        let (dyp, a) = lane.split_at_mut(self.s.oc.div_ceil(2 * MR) * DY_PANEL);
        let (first, end) = (at.group * self.s.pixels, self.m.min((at.group + 1) * self.s.pixels));
        for m0 in (first..end).step_by(PC) {
            let pc = PC.min(end - m0);
            for i in 0..pc {
                self.pack_dy(m0 + i, i, at.o0, oc, dyp);
                self.pack_window(m0 + i, i, at.n0, nc, a);
            }
            let finish = Finish { accumulate: add || m0 > first, ..Finish::default() };
            self.multiply(pc, (dyp, a), &mut c, finish);
        }
    }

    /// Row `i` of the panels of dy: the channels of one pixel.
    #[inline(always)]
    fn pack_dy(&self, pixel: usize, i: usize, o0: usize, oc: usize, dyp: &mut [f32]) {
        let row = pixel * self.o + o0;
        let panels = oc.div_ceil(2 * MR);
        for (q, panel) in dyp.chunks_exact_mut(DY_PANEL).take(panels).enumerate() {
            let panel = &mut panel[i * NR..][..NR];
            let (start, end) = (bound(q, oc), bound(q + 1, oc));
            match self.dy[row + start..].first_chunk::<NR>() {
                // The channels behind those of the panel are copied, but not used.
                Some(part) => panel.copy_from_slice(part),
                None => simd::copy(&mut panel[..end - start], &self.dy[row + start..row + end]),
            }
        }
    }

    /// Row `i` of the panels of A: the columns of one pixel's window.
    #[inline(always)]
    fn pack_window(&self, pixel: usize, i: usize, n0: usize, nc: usize, a: &mut [f32]) {
        let src = &self.src;
        let mut buffer = [0f32; NC];
        let row = if src.plain {
            &src.map[pixel * src.window.len() + n0..][..nc]
        } else {
            let at = (self.place)(pixel);
            src.window.slice(src.map, at, n0, nc).unwrap_or_else(|| {
                src.window.copy_row(&mut buffer[..nc], src.map, at, n0);
                &buffer[..nc]
            })
        };
        for (panel, part) in a.chunks_exact_mut(A_PANEL).zip(row.chunks(NR)) {
            match <&[f32; NR]>::try_from(part) {
                Ok(whole) => panel[i * NR..][..NR].copy_from_slice(whole),
                Err(_) => simd::copy(&mut panel[i * NR..][..part.len()], part),
            }
        }
    }

    /// `c (+)= dy^T A` over the packed pixels, tile by tile: a panel of dy has at most two tiles.
    #[inline(always)]
    fn multiply(&self, pc: usize, (dyp, a): (&[f32], &[f32]), c: &mut MatMut<'_>, finish: Finish<'_>) {
        let (oc, nc) = (c.rows(), c.cols());
        for q in 0..oc.div_ceil(2 * MR) {
            let (start, end) = (bound(q, oc), bound(q + 1, oc));
            let middle = if end - start > MR { (start + end).div_ceil(2) } else { end };
            for (r0, r1) in [(start, middle), (middle, end)] {
                let rows: [usize; MR] = std::array::from_fn(|i| r0 + i);
                for col in (0..nc).step_by(NR) {
                    let b = &a[col / NR * A_PANEL..][..A_PANEL];
                    let a = &dyp[q * DY_PANEL + r0 - start..(q + 1) * DY_PANEL];
                    let f = Factors { a, rs: 1, cs: NR, b, ldb: NR, k: pc };
                    tile(self.isa, f, c, &rows[..r1 - r0], col, NR.min(nc - col), finish);
                }
            }
        }
    }
}

/// First channel of panel `q`, where `oc` channels are shared out evenly among panels of at most two tiles.
fn bound(q: usize, oc: usize) -> usize {
    q * oc / oc.div_ceil(2 * MR)
}

/// `dw (+)= sum of the partials`, in order.
fn add_partials(dw: &mut [f32], accumulate: bool, partials: &[f32]) {
    let len = dw.len();
    view::par_blocks(dw, len.max(1), 4096, &mut [], 0, |_, i, block, _| {
        if !accumulate {
            block.fill(0.0);
        }
        for p in partials.chunks_exact(len) {
            block.iter_mut().zip(&p[i * 4096..]).for_each(|(d, p)| *d += p);
        }
    });
}
