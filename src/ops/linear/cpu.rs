//! Fully connected layers on the CPU, f32: `y[M,N] = x[M,K] w[N,K]^T + bias`. The products are those of
//! [`crate::ops::conv2d`] with windows of one pixel, and so are workspace and determinism.

use crate::cpu::view::{self, ALIGN_SLACK};
use crate::ops::conv2d::cpu::{Right, Schedule, product};
use crate::ops::conv2d::gather::{Place, Window};
use crate::ops::conv2d::implicit::Source;
use crate::ops::conv2d::weights;

/// Sizes of a linear layer: x `[m,k]`, w `[n,k]`, y `[m,n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearShape {
    /// Rows.
    pub m: usize,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
}

impl LinearShape {
    /// Floating-point operations of any of the three passes.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

fn rows(map: &[f32], m: usize, c: usize) -> Source<'_> {
    Source { map, window: Window { h: 1, w: m, c, kh: 1, kw: 1 }, plain: true }
}

fn place(i: usize) -> Place {
    Place { image: 0, h0: 0, w0: i as isize }
}

/// Workspace of [`forward`], in elements.
pub fn forward_workspace(s: &LinearShape) -> usize {
    ALIGN_SLACK + Schedule::new(s.m, s.k, s.n).workspace(s.m, s.k, s.n)
}

/// `y = x w^T + bias`, then `max(0, .)` if `relu`; NaN stays.
pub fn forward(y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, relu: bool, ws: &mut [f32], s: &LinearShape) {
    assert!(y.len() == s.m * s.n && x.len() == s.m * s.k && w.len() == s.n * s.k);
    assert!(bias.is_none_or(|b| b.len() == s.n));
    if !y.is_empty() {
        product(y, (s.m, s.n), rows(x, s.m, s.k), Right::Transposed(w), bias, relu, place, view::aligned(ws));
    }
}

/// Workspace of [`backward_data`], in elements.
pub fn backward_data_workspace(s: &LinearShape) -> usize {
    ALIGN_SLACK + Schedule::new(s.m, s.n, s.k).workspace(s.m, s.n, s.k)
}

/// `dx = dy w`; overwrites dx.
pub fn backward_data(dx: &mut [f32], dy: &[f32], w: &[f32], ws: &mut [f32], s: &LinearShape) {
    assert!(dx.len() == s.m * s.k && dy.len() == s.m * s.n && w.len() == s.n * s.k);
    if !dx.is_empty() {
        let row = |q: usize| q * s.k;
        product(dx, (s.m, s.k), rows(dy, s.m, s.n), Right::Rows(w, &row), None, false, place, view::aligned(ws));
    }
}

/// Workspace of [`backward_weights`], in elements.
pub fn backward_weights_workspace(s: &LinearShape) -> usize {
    ALIGN_SLACK + weights::workspace(s.m, s.n, s.k)
}

/// `dw (+)= dy^T x`.
pub fn backward_weights(dw: &mut [f32], accumulate: bool, x: &[f32], dy: &[f32], ws: &mut [f32], s: &LinearShape) {
    assert!(dw.len() == s.n * s.k && dy.len() == s.m * s.n && x.len() == s.m * s.k);
    if dw.is_empty() {
        return;
    }
    if s.m == 0 {
        if !accumulate {
            dw.fill(0.0);
        }
        return;
    }
    weights::gradient(dw, accumulate, rows(x, s.m, s.k), dy, (s.m, s.n), place, view::aligned(ws));
}
