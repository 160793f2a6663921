//! The CPU's passes over the images that count, group by group.

use super::cpu;
use super::cpu::ConvShape;
use crate::ops::common::live::Live;

fn of(s: &ConvShape, n: usize) -> ConvShape {
    ConvShape { n, ..*s }
}

/// Workspace of [`forward`], in elements.
pub(in crate::ops) fn forward_workspace(s: &ConvShape, live: &Live) -> usize {
    live.workspace(|n| cpu::forward_workspace(&of(s, n)))
}

/// [`cpu::forward`]; y is 0 in the other images.
pub(in crate::ops) fn forward(
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    relu: bool,
    ws: &mut [f32],
    s: &ConvShape,
    live: &Live,
) {
    for r in live.ranges() {
        cpu::forward(live.part_mut(y, &r), live.part(x, &r), w, bias, relu, ws, &of(s, r.len()));
    }
    live.clear_others(y);
}

/// Workspace of [`backward_data`], in elements.
pub(in crate::ops) fn backward_data_workspace(s: &ConvShape, live: &Live) -> usize {
    live.workspace(|n| cpu::backward_data_workspace(&of(s, n)))
}

/// [`cpu::backward_data`]; dx is 0 in the other images.
pub(in crate::ops) fn backward_data(dx: &mut [f32], dy: &[f32], w: &[f32], ws: &mut [f32], s: &ConvShape, live: &Live) {
    for r in live.ranges() {
        cpu::backward_data(live.part_mut(dx, &r), live.part(dy, &r), w, ws, &of(s, r.len()));
    }
    live.clear_others(dx);
}

/// Workspace of [`backward_weights`], in elements.
pub(in crate::ops) fn backward_weights_workspace(s: &ConvShape, live: &Live) -> usize {
    live.workspace(|n| cpu::backward_weights_workspace(&of(s, n)))
}

/// [`cpu::backward_weights`]; x and dy of the other images are not read.
pub(in crate::ops) fn backward_weights(
    dw: &mut [f32],
    accumulate: bool,
    x: &[f32],
    dy: &[f32],
    ws: &mut [f32],
    s: &ConvShape,
    live: &Live,
) {
    let mut add = accumulate;
    for r in live.ranges() {
        cpu::backward_weights(dw, add, live.part(x, &r), live.part(dy, &r), ws, &of(s, r.len()));
        add = true;
    }
}
