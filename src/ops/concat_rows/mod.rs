//! Joins the rows of several maps: the levels of a region proposal network become one list.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::Tensor;

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "concat_rows", gradient: Gradient::Yes };

/// Each image's elements of each input in turn, as rows of `width`: `[N,H,W,A·width]` gives `H·W·A` rows.
///
/// Shapes: inputs `[N, …]` floats of one type, elements an image a multiple of `width`; y `[N, Σ rows, width]`.
/// Saves: nothing.
/// Gradient: every input.
/// Cost: reads and writes every element once.
/// Errors: `Shape` if N differs; `Value` without inputs, or if an input does not divide into rows.
/// Reference: flattening order (H, W, A) of mmdetection's anchor heads.
pub fn concat_rows(tape: &mut Tape, inputs: &[&Var], width: usize) -> Result<Var> {
    let device = tape.device().clone();
    let _op = device.enter("concat_rows");
    let n = inputs.first().and_then(|v| v.shape().first().copied());
    let Some(n) = n.filter(|_| width > 0) else {
        return Err(Error::value(
            "concat_rows",
            "wants at least one input of one or more dimensions, and a width above 0",
        ));
    };
    let dtype = inputs[0].value().dtype();
    let mut rows = Vec::with_capacity(inputs.len());
    for (i, v) in inputs.iter().enumerate() {
        v.value().expect_float("concat_rows")?;
        v.value().expect_dtype("concat_rows", dtype)?;
        let an_image: usize = v.shape().iter().skip(1).product();
        if v.shape().first() != Some(&n) || !an_image.is_multiple_of(width) {
            return Err(Error::Shape {
                what: format!("concat_rows: input {i}"),
                want: format!("[{n}, …] in rows of {width}"),
                got: v.shape().to_vec(),
            });
        }
        rows.push(an_image / width);
    }
    if wide::needed(inputs[0]) {
        return wide::run(tape, inputs, move |tape, v| concat_rows(tape, &v.iter().collect::<Vec<_>>(), width));
    }
    let total: usize = rows.iter().sum();
    let mut y = Tensor::empty(&device, &[n, total, width], dtype)?;
    let mut from = 0;
    for (v, rows) in inputs.iter().zip(&rows) {
        let (at, len) = (from * width, rows * width);
        on_device!(
            &device,
            cpu => cpu::put(y.f32s_mut(), v.value().f32s(), total * width, at, len),
            cuda => cuda::put(&mut y, v.value(), total * width, at, len),
        );
        from += rows;
    }
    let shapes = inputs.iter().map(|v| v.shape().to_vec()).collect();
    Ok(tape.record_all(inputs, y, ConcatRowsBwd { shapes, rows, width }))
}

struct ConcatRowsBwd {
    shapes: Vec<Vec<usize>>,
    rows: Vec<usize>,
    width: usize,
}

impl Backward for ConcatRowsBwd {
    fn op(&self) -> &'static str {
        "concat_rows"
    }

    fn saved_bytes(&self) -> usize {
        0
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let total: usize = self.rows.iter().sum();
        let mut from = 0;
        for (i, (shape, rows)) in self.shapes.iter().zip(&self.rows).enumerate() {
            let (at, len) = (from * self.width, rows * self.width);
            from += rows;
            if !sink.needs(i) {
                continue;
            }
            let mut dx = Tensor::empty(dy.device(), shape, dy.dtype())?;
            on_device!(
                dy.device(),
                cpu => cpu::take(dx.f32s_mut(), dy.f32s(), total * self.width, at, len),
                cuda => cuda::take(&mut dx, &dy, total * self.width, at, len),
            );
            sink.add(i, dx)?;
        }
        Ok(())
    }
}
