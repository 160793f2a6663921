//! Convolution on the CPU, f32: forward, gradient of the data, gradient of the weights.
//!
//! Functions on slices; shapes are checked by the caller's op, lengths are asserted here. No function allocates: each
//! takes the workspace that its `*_workspace` function asks for (its contents on entry do not matter). The algorithm is
//! a pure function of the shape, and all work is cut into fixed blocks, so results do not depend on the thread count.

use super::gather::{Place, Window};
use super::implicit::{self, Product, Source};
use super::winograd::{self, Epilogue, Geometry, Kernels};
use super::{pack, weights, winograd_weights};
use crate::cpu::microkernel::{Isa, MR, NR};
use crate::cpu::view::{self, ALIGN_SLACK, MatMut};

/// Sizes of a convolution: x `[n,h,w,c]`, weights `[o,kh,kw,c]`, y `[n,oh,ow,o]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images.
    pub n: usize,
    /// Height of x.
    pub h: usize,
    /// Width of x.
    pub w: usize,
    /// Channels of x.
    pub c: usize,
    /// Channels of y.
    pub o: usize,
    /// Height of the kernel.
    pub kh: usize,
    /// Width of the kernel.
    pub kw: usize,
    /// Stride, the same in both directions.
    pub stride: usize,
    /// Zero padding, the same on all sides.
    pub pad: usize,
}

impl ConvShape {
    /// Height of y; 0 if the kernel does not fit.
    pub fn oh(&self) -> usize {
        (self.h + 2 * self.pad + self.stride).saturating_sub(self.kh) / self.stride
    }
    /// Width of y; 0 if the kernel does not fit.
    pub fn ow(&self) -> usize {
        (self.w + 2 * self.pad + self.stride).saturating_sub(self.kw) / self.stride
    }
    /// Output pixels.
    pub fn m(&self) -> usize {
        self.n * self.oh() * self.ow()
    }
    /// Elements of one filter.
    pub fn k(&self) -> usize {
        self.kh * self.kw * self.c
    }
    /// Elements of x.
    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }
    /// Elements of y.
    pub fn y_len(&self) -> usize {
        self.m() * self.o
    }
    /// Elements of the weights.
    pub fn w_len(&self) -> usize {
        self.o * self.k()
    }
    /// Floating-point operations of the direct algorithm, for any of the three passes.
    pub fn flops(&self) -> f64 {
        2.0 * self.m() as f64 * self.w_len() as f64
    }

    fn x_window(&self) -> Window {
        Window { h: self.h, w: self.w, c: self.c, kh: self.kh, kw: self.kw }
    }
    /// Whether the windows are single pixels, one after the other.
    fn plain(&self) -> bool {
        self.kh == 1 && self.kw == 1 && self.stride == 1 && self.pad == 0
    }
    /// The geometry of Winograd's algorithm, where it can be used and pays.
    fn winograd(&self) -> Option<Geometry> {
        let g = Geometry {
            n: self.n,
            h: self.h,
            w: self.w,
            c: self.c,
            oh: self.oh(),
            ow: self.ow(),
            o: self.o,
            pad: self.pad,
        };
        (self.kh == 3 && self.kw == 3 && self.stride == 1 && g.pays()).then_some(g)
    }
    /// The same for the data gradient, which is a convolution of dy.
    fn winograd_back(&self) -> Option<Geometry> {
        if self.pad > 2 {
            return None;
        }
        let (h, w) = (self.oh(), self.ow());
        let g = Geometry { n: self.n, h, w, c: self.o, oh: self.h, ow: self.w, o: self.c, pad: 2 - self.pad };
        (self.kh == 3 && self.kw == 3 && self.stride == 1 && g.pays()).then_some(g)
    }
    /// The window of output pixel `i`.
    fn place(&self, i: usize) -> Place {
        let (oh, ow) = (self.oh(), self.ow());
        let (row, col) = (i / ow, i % ow);
        let top_left = |q: usize| (q * self.stride) as isize - self.pad as isize;
        Place { image: row / oh, h0: top_left(row % oh), w0: top_left(col) }
    }
}

/// The schedule of a product of `m` rows, depth `k` and `n` columns: see [`implicit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// Blocks of this many rows.
    Rows(usize),
    /// Blocks of this many columns.
    Columns(usize),
}

/// A right factor above this size (16 MiB) is not packed as a whole, to bound the workspace.
const MAX_PACKED: usize = 4 << 20;

impl Schedule {
    pub(crate) fn new(m: usize, k: usize, n: usize) -> Schedule {
        if k * n > MAX_PACKED {
            return Schedule::Columns(128);
        }
        // At least 24 tasks if there are so many tiles; blocks beyond 8 tiles gain nothing.
        Schedule::Rows(m.div_ceil(24).next_multiple_of(MR).clamp(MR, 8 * MR))
    }
    pub(crate) fn workspace(self, m: usize, k: usize, n: usize) -> usize {
        match self {
            Schedule::Rows(block) => {
                implicit::panels_len(k, n) + view::lanes_len(m.div_ceil(block), implicit::rows_lane(block))
            }
            Schedule::Columns(width) => implicit::columns_workspace(n, width),
        }
    }
}

/// A row-major matrix whose panels make the right factor.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// B = w^T, with w `[n, k]`.
    Transposed(&'a [f32]),
    /// Row q of B is `w[row(q)..][..n]`.
    Rows(&'a [f32], &'a (dyn Fn(usize) -> usize + Sync)),
}

/// `y [m, n] = A B (+ bias, relu)`, with row i of A gathered at `place(i)`.
pub(crate) fn product(
    y: &mut [f32],
    (m, n): (usize, usize),
    src: Source<'_>,
    right: Right<'_>,
    bias: Option<&[f32]>,
    relu: bool,
    place: impl Fn(usize) -> Place + Sync,
    ws: &mut [f32],
) {
    let k = src.window.len();
    if k == 0 {
        for row in y.chunks_exact_mut(n) {
            (0..n).for_each(|j| row[j] = bias.map_or(0.0, |b| if relu && b[j] < 0.0 { 0.0 } else { b[j] }));
        }
        return;
    }
    let pack_panel = |panel: &mut [f32], col: usize, cols: usize, k0: usize| match right {
        Right::Transposed(w) => pack::from_columns(panel, w, k, col, cols, k0),
        Right::Rows(w, row) => pack::from_rows(panel, col, cols, |q| &w[row(k0 + q)..][..n]),
    };
    match Schedule::new(m, k, n) {
        Schedule::Columns(width) => {
            implicit::columns_product(MatMut::new(y, m, n, n), width, src, bias, relu, place, pack_panel, ws);
        }
        Schedule::Rows(block) => {
            let (panels, ws) = ws.split_at_mut(implicit::panels_len(k, n));
            let len = panels.len();
            view::par_blocks(panels, len.max(1), k * NR, &mut [], 0, |_, i, panel, _| {
                pack_panel(panel, i * NR, NR.min(n - i * NR), 0);
            });
            let p = Product { panels, n, bias, relu };
            let isa = Isa::detect();
            view::par_blocks(y, m * n, block * n, ws, implicit::rows_lane(block), |_, i, part, lane| {
                let rows = part.len() / n;
                let mut c = MatMut::new(part, rows, n, n);
                implicit::rows_product(isa, &mut c, (i * block, rows), src, p, &place, |r| r - i * block, lane);
            });
        }
    }
}

/// Workspace of [`forward`], in elements.
pub fn forward_workspace(s: &ConvShape) -> usize {
    ALIGN_SLACK
        + match s.winograd() {
            Some(g) => g.workspace(),
            None => Schedule::new(s.m(), s.k(), s.o).workspace(s.m(), s.k(), s.o),
        }
}

/// `y = conv(x, w) + bias`, then `max(0, .)` if `relu`; NaN stays.
pub fn forward(y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, relu: bool, ws: &mut [f32], s: &ConvShape) {
    assert!(y.len() == s.y_len() && x.len() == s.x_len() && w.len() == s.w_len());
    assert!(bias.is_none_or(|b| b.len() == s.o));
    if y.is_empty() {
        return;
    }
    let ws = view::aligned(ws);
    if let Some(g) = s.winograd() {
        return winograd::convolve(y, x, Kernels::Forward(w), Epilogue { bias, relu }, ws, &g);
    }
    let src = Source { map: x, window: s.x_window(), plain: s.plain() };
    product(y, (s.m(), s.o), src, Right::Transposed(w), bias, relu, |i| s.place(i), ws);
}

/// The input pixels whose row (or column) is `first + stride * t`: they see every `stride`-th row of the kernel.
#[derive(Clone, Copy, Debug)]
struct Phase {
    /// Rows of the kernel seen.
    taps: usize,
    /// The last of them.
    last: usize,
    /// Row of dy under the last one, for t = 0.
    start: isize,
}

impl Phase {
    fn new(first: usize, kernel: usize, stride: usize, pad: usize) -> Phase {
        let k0 = (first + pad) % stride;
        let taps = if k0 < kernel { (kernel - k0).div_ceil(stride) } else { 0 };
        let last = k0 + stride * taps.saturating_sub(1);
        Phase { taps, last, start: ((first + pad) as isize - last as isize).div_euclid(stride as isize) }
    }
}

/// Rows of dx that a task of the strided [`backward_data`] takes: whole strides, about 112 pixels a phase.
fn strided_rows(s: &ConvShape) -> usize {
    (8 * MR).div_ceil(s.w.div_ceil(s.stride)).max(1) * s.stride
}

/// Workspace of [`backward_data`], in elements.
pub fn backward_data_workspace(s: &ConvShape) -> usize {
    if let Some(g) = s.winograd_back() {
        return ALIGN_SLACK + g.workspace();
    }
    let k = s.kh * s.kw * s.o;
    if s.stride == 1 {
        let m = s.n * s.h * s.w;
        return ALIGN_SLACK + Schedule::new(m, k, s.c).workspace(m, k, s.c);
    }
    let rows = strided_rows(s);
    let pixels = rows / s.stride * s.w.div_ceil(s.stride);
    ALIGN_SLACK + implicit::panels_len(k, s.c) + view::lanes_len(s.n * s.h.div_ceil(rows), implicit::rows_lane(pixels))
}

/// `dx = gradient of conv for dy`; overwrites dx.
pub fn backward_data(dx: &mut [f32], dy: &[f32], w: &[f32], ws: &mut [f32], s: &ConvShape) {
    assert!(dy.len() == s.y_len() && dx.len() == s.x_len() && w.len() == s.w_len());
    if dx.is_empty() {
        return;
    }
    if dy.is_empty() {
        dx.fill(0.0);
        return;
    }
    let ws = view::aligned(ws);
    if let Some(g) = s.winograd_back() {
        return winograd::convolve(dx, dy, Kernels::Turned(w), Epilogue { bias: None, relu: false }, ws, &g);
    }
    if s.stride > 1 {
        return backward_data_strided(dx, dy, w, ws, s);
    }
    let window = Window { h: s.oh(), w: s.ow(), c: s.o, kh: s.kh, kw: s.kw };
    let src = Source { map: dy, window, plain: s.plain() };
    let (back_h, back_w) = (s.kh as isize - 1 - s.pad as isize, s.kw as isize - 1 - s.pad as isize);
    let place = |i: usize| Place {
        image: i / (s.h * s.w),
        h0: (i / s.w % s.h) as isize - back_h,
        w0: (i % s.w) as isize - back_w,
    };
    // Depth is ordered [kh, kw, o] with the kernel turned by 180 degrees.
    let row = |q: usize| {
        let (tap, o) = (q / s.o, q % s.o);
        (o * s.kh * s.kw + s.kh * s.kw - 1 - tap) * s.c
    };
    product(dx, (s.n * s.h * s.w, s.c), src, Right::Rows(w, &row), None, false, place, ws);
}

/// [`backward_data`] for strides above 1: the pixels of dx fall into stride x stride phases, each of which is a
/// convolution of dy, of stride 1, with a part of the kernel.
fn backward_data_strided(dx: &mut [f32], dy: &[f32], w: &[f32], ws: &mut [f32], s: &ConvShape) {
    let st = s.stride;
    let phase = |q: usize| (Phase::new(q / st, s.kh, st, s.pad), Phase::new(q % st, s.kw, st, s.pad));
    let (panels, lanes) = ws.split_at_mut(implicit::panels_len(s.kh * s.kw * s.o, s.c));
    let mut rest = &mut *panels;
    for q in 0..st * st {
        let (ph, pw) = phase(q);
        let depth = ph.taps * pw.taps * s.o;
        let (part, tail) = rest.split_at_mut(implicit::panels_len(depth, s.c));
        rest = tail;
        let row = |q: usize| {
            let (tap, o) = (q / s.o, q % s.o);
            let (kh, kw) = (ph.last - tap / pw.taps * st, pw.last - tap % pw.taps * st);
            ((o * s.kh + kh) * s.kw + kw) * s.c
        };
        let len = part.len().max(1);
        view::par_blocks(part, len, (depth * NR).max(1), &mut [], 0, |_, i, panel, _| {
            pack::from_rows(panel, i * NR, NR.min(s.c - i * NR), |q| &w[row(q)..][..s.c]);
        });
    }
    let panels = &*panels;
    let isa = Isa::detect();
    let rows = strided_rows(s);
    let lane_len = implicit::rows_lane(rows / st * s.w.div_ceil(st));
    let line = s.w * s.c;
    view::par_blocks(dx, s.h * line, rows * line, lanes, lane_len, |image, i, part, lane| {
        let height = part.len() / line;
        let mut c = MatMut::new(part, height * s.w, s.c, s.c);
        let mut offset = 0;
        for q in 0..st * st {
            let (ph, pw) = phase(q);
            let len = implicit::panels_len(ph.taps * pw.taps * s.o, s.c);
            let p = Product { panels: &panels[offset..offset + len], n: s.c, bias: None, relu: false };
            offset += len;
            let (h0, w0) = (q / st, q % st);
            let (th, tw) = (height.saturating_sub(h0).div_ceil(st), s.w.saturating_sub(w0).div_ceil(st));
            if len == 0 {
                for t in 0..th * tw {
                    c.row_mut((h0 + t / tw * st) * s.w + w0 + t % tw * st).fill(0.0);
                }
                continue;
            }
            let window = Window { h: s.oh(), w: s.ow(), c: s.o, kh: ph.taps, kw: pw.taps };
            let place = |t: usize| {
                let h = ph.start + (i * (rows / st) + t / tw) as isize;
                Place { image, h0: h, w0: pw.start + (t % tw) as isize }
            };
            let out = |t: usize| (h0 + t / tw * st) * s.w + w0 + t % tw * st;
            implicit::rows_product(
                isa,
                &mut c,
                (0, th * tw),
                Source { map: dy, window, plain: false },
                p,
                place,
                out,
                lane,
            );
        }
    });
}

/// Workspace of [`backward_weights`], in elements.
pub fn backward_weights_workspace(s: &ConvShape) -> usize {
    ALIGN_SLACK
        + match s.winograd() {
            Some(g) => winograd_weights::workspace(&g),
            None => weights::workspace(s.m(), s.o, s.k()),
        }
}

/// `dw (+)= gradient of conv for dy`.
pub fn backward_weights(dw: &mut [f32], accumulate: bool, x: &[f32], dy: &[f32], ws: &mut [f32], s: &ConvShape) {
    assert!(dy.len() == s.y_len() && x.len() == s.x_len() && dw.len() == s.w_len());
    if dy.is_empty() || dw.is_empty() {
        if !accumulate {
            dw.fill(0.0);
        }
        return;
    }
    let ws = view::aligned(ws);
    if let Some(g) = s.winograd() {
        return winograd_weights::gradient(dw, accumulate, x, dy, ws, &g);
    }
    let src = Source { map: x, window: s.x_window(), plain: s.plain() };
    weights::gradient(dw, accumulate, src, dy, (s.m(), s.o), |i| s.place(i), ws);
}
