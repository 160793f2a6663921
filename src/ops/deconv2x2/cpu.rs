//! The forward pass of the transposed convolution on the CPU: the gradients are a convolution's (`Shape::adjoint`).
//!
//! The two output rows of a row of x are two products, with the halves of the weight that are theirs: in each the two
//! pixels of a pixel of x lie side by side, so that the products write y in place.

use super::Shape;
use crate::cpu::microkernel::{Isa, MR, NR};
use crate::cpu::view::{self, ALIGN_SLACK, MatMut};
use crate::ops::common::live::Live;
use crate::ops::conv2d::gather::{Place, Window};
use crate::ops::conv2d::implicit::{self, Product, Source};
use crate::ops::conv2d::pack;
use crate::ops::linear;

/// Rows of x of a task: about 112 pixels.
fn lines(s: &Shape) -> usize {
    (8 * MR).div_ceil(s.w.max(1))
}

fn lane(s: &Shape) -> usize {
    implicit::rows_lane(lines(s) * s.w)
}

/// Workspace of [`forward`], in elements.
pub(super) fn forward_workspace(s: &Shape, live: &Live) -> usize {
    let lanes = live.workspace(|r| view::lanes_len((r * s.h).div_ceil(lines(s)), lane(s)));
    ALIGN_SLACK + 2 * implicit::panels_len(s.i, 2 * s.o) + (2 * s.o).next_multiple_of(16) + lanes
}

/// Workspace of the simulated device's product `x wt`.
pub(super) fn product_workspace(s: &Shape) -> usize {
    linear::cpu::backward_data_workspace(&s.linear())
}

/// y from x, for the maps that count; 0 in the others.
pub(super) fn forward(
    y: &mut [f32],
    x: &[f32],
    wt: &[f32],
    bias: Option<&[f32]>,
    relu: bool,
    ws: &mut [f32],
    s: &Shape,
    live: &Live,
) {
    if y.is_empty() {
        return;
    }
    let n = 2 * s.o;
    let ws = view::aligned(ws);
    let (panels, ws) = ws.split_at_mut(2 * implicit::panels_len(s.i, n));
    let (bias_twice, lanes) = ws.split_at_mut(n.next_multiple_of(16));
    let half = panels.len() / 2;
    view::par_blocks(panels, half, s.i * NR, &mut [], 0, |a, j, panel, _| {
        let col = j * NR;
        pack::from_rows(panel, col, NR.min(n - col), |i| &wt[(2 * i + a) * n..][..n]);
    });
    let panels = &*panels;
    let bias = bias.map(|b| {
        bias_twice[..s.o].copy_from_slice(b);
        bias_twice[s.o..n].copy_from_slice(b);
        &bias_twice[..n]
    });
    let isa = Isa::detect();
    let (line, step) = (2 * s.w * n, lines(s));
    for maps in live.ranges() {
        let (y, x) = (live.part_mut(y, &maps), live.part(x, &maps));
        let window = Window { h: 1, w: maps.len() * s.h * s.w, c: s.i, kh: 1, kw: 1 };
        let src = Source { map: x, window, plain: true };
        let len = y.len().max(1);
        view::par_blocks(y, len, step * line, lanes, lane(s), |_, task, part, lane| {
            let (first, count) = (task * step * s.w, part.len() / (2 * n));
            let mut c = MatMut::new(part, 2 * count, n, n);
            for a in 0..2 {
                let p = Product { panels: &panels[a * half..][..half], n, bias, relu };
                let place = |i: usize| Place { image: 0, h0: 0, w0: i as isize };
                let out = |i: usize| (2 * ((i - first) / s.w) + a) * s.w + (i - first) % s.w;
                implicit::rows_product(isa, &mut c, (first, count), src, p, place, out, lane);
            }
        });
    }
    live.clear_others(y);
}
