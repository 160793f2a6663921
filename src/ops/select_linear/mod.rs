//! The output layer of a mask head: of the maps of all classes only the one that counts.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "select_linear", gradient: Gradient::Yes };

/// Rows of a partial sum of the weight's gradient.
const CHUNK: usize = 128;

/// Sizes: x `[r,m,c]`, w `[k,c]`.
#[derive(Clone, Copy, Debug)]
struct Shape {
    r: usize,
    m: usize,
    c: usize,
    k: usize,
}

impl Shape {
    /// Partial sums of one of the `r`.
    fn chunks(&self) -> usize {
        self.m.div_ceil(CHUNK)
    }
    /// Rows of one.
    fn rows_per_chunk(&self) -> usize {
        self.m.div_ceil(self.chunks().max(1)).max(1)
    }
}

/// `y[r,m] = x[r,m,:] · w[label[r],:] + b[label[r]]`: channel `label[r]` of a 1×1 convolution with K outputs, for 1/K
/// of its work and memory. Where the label is not in 0..K (-1: padding), y is 0 and nothing has a gradient: on the CPU
/// such rows cost nothing but the writing of zeros, and x is not read.
///
/// Shapes: x `[R,...,C]`, floats of one type, M numbers between R and C; w `[K,C]`, b `[K]` f32; label `[R]` i32; y
/// `[R,...]` f32.
/// Saves: x, w, label.
/// Gradient: x, w, b; those of w and b are summed in a fixed order.
/// Cost: reads R·M·C forward, reads and writes it backward; memory-bound.
/// Errors: `Shape` if the channels of x and w or the lengths of b and label do not fit; `Dtype`.
/// Reference: He et al. 2017, section 3: a mask for each class, the loss on that of the object's.
pub fn select_linear(tape: &mut Tape, x: &Var, w: &Var, b: &Var, label: &Tensor) -> Result<Var> {
    let device = x.device().clone();
    let _op = device.enter("select_linear");
    let [k, c] = w.value().dims("select_linear: w")?;
    x.value().expect_float("select_linear: x")?;
    w.value().expect_dtype("select_linear: w", DType::F32)?;
    let Some((_, rows)) = x.shape().split_last().filter(|(last, rows)| **last == c && !rows.is_empty()) else {
        let want = format!("[R,...,{c}]");
        return Err(Error::Shape { what: "select_linear: x".into(), want, got: x.shape().to_vec() });
    };
    b.value().expect_shape("select_linear: b", &[k])?;
    b.value().expect_dtype("select_linear: b", DType::F32)?;
    label.expect_shape("select_linear: label", &rows[..1])?;
    label.expect_dtype("select_linear: label", DType::I32)?;
    if wide::needed(x) {
        let label = label.clone();
        return wide::run_to(tape, &[x, w, b], DType::F32, move |tape, v| {
            select_linear(tape, &v[0], &v[1], &v[2], &label)
        });
    }
    let s = Shape { r: rows[0], m: rows[1..].iter().product(), c, k };
    let mut y = Tensor::empty(&device, rows, DType::F32)?;
    on_device!(
        &device,
        cpu => {
            let (x, w, b) = (x.value().f32s(), w.value().f32s(), b.value().f32s());
            cpu::forward(y.f32s_mut(), x, w, b, label.i32s(), &s);
        },
        cuda => cuda::forward(&mut y, x.value(), w.value(), b.value(), label, &s),
    );
    let rule = SelectLinearBwd { x: x.value().clone(), w: w.value().clone(), label: label.clone(), s };
    Ok(tape.record([x, w, b], y, rule))
}

struct SelectLinearBwd {
    x: Tensor,
    w: Tensor,
    label: Tensor,
    s: Shape,
}

impl Backward for SelectLinearBwd {
    fn op(&self) -> &'static str {
        "select_linear"
    }
    fn saved_bytes(&self) -> usize {
        self.x.bytes() + self.w.bytes() + self.label.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let SelectLinearBwd { x, w, label, s } = *self;
        let (device, shape, dtype) = (dy.device().clone(), x.shape().to_vec(), x.dtype());
        if sink.needs(1) || sink.needs(2) {
            let mut w_sums = Tensor::empty(&device, &[s.r * s.chunks(), s.c], DType::F32)?;
            let mut b_sums = Tensor::empty(&device, &[s.r * s.chunks(), 1], DType::F32)?;
            on_device!(
                &device,
                cpu => {
                    let sums = (w_sums.f32s_mut(), b_sums.f32s_mut());
                    cpu::partial_sums(sums.0, sums.1, dy.f32s(), x.f32s(), label.i32s(), &s);
                },
                cuda => cuda::partial_sums(&mut w_sums, &mut b_sums, &dy, &x, &label, &s),
            );
            for (i, shape, sums) in [(1, &[s.k, s.c][..], &w_sums), (2, &[s.k], &b_sums)] {
                sink.write(i, &device, shape, DType::F32, |d, accumulate| {
                    on_device!(
                        &device,
                        cpu => cpu::fold(d.f32s_mut(), accumulate, sums.f32s(), label.i32s(), &s),
                        cuda => cuda::fold(d, accumulate, sums, &label, &s),
                    );
                    Ok(())
                })?;
            }
        }
        drop(x); // may be the last reference: its memory can serve dx
        if !sink.needs(0) {
            return Ok(());
        }
        let mut dx = Tensor::empty(&device, &shape, dtype)?;
        on_device!(
            &device,
            cpu => cpu::backward_data(dx.f32s_mut(), dy.f32s(), w.f32s(), label.i32s(), &s),
            cuda => cuda::backward_data(&mut dx, &dy, &w, &label, &s),
        );
        sink.add(0, dx)
    }
}
