//! Softmax cross-entropy from logits, the class loss of the RoI heads; and the number that a detector's losses are
//! divided by.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::partial::Partial;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "softmax_ce", gradient: Gradient::Yes };

/// `loss = weight / avg * sum over rows of (ln sum exp(x) - x[label])`; rows whose label is outside `0..C` (-1) are
/// ignored. `C` counts the background.
///
/// Shapes: logits `[..,C]` f32, M rows; labels i32, M elements; avg `[1]` f32; loss `[1]` f32, summed in f64.
/// Saves: logits, labels, avg.
/// Gradient: logits: `weight / avg * (softmax(x) - onehot(label))`, 0 in ignored rows.
/// Cost: reads M·C; one exponential an element, once more in the backward pass.
/// Errors: `Shape` if labels are not one a row or C is 0.
/// Reference: Girshick 2015, eq. 1; the divisor is [`AvgFactor::Roi`](super::avg_factor::AvgFactor::Roi).
pub fn softmax_ce(tape: &mut Tape, logits: &Var, labels: &Tensor, avg: &Tensor, weight: f32) -> Result<Var> {
    let _op = logits.device().enter("softmax_ce");
    logits.value().expect_dtype("softmax_ce: logits", DType::F32)?;
    labels.expect_dtype("softmax_ce: labels", DType::I32)?;
    let Some((&c, rows)) = logits.shape().split_last().filter(|(c, _)| **c > 0) else {
        let (what, want) = ("softmax_ce: logits".into(), "[..,C]".into());
        return Err(Error::Shape { what, want, got: logits.shape().to_vec() });
    };
    labels.reshape(&[labels.numel()])?.expect_shape("softmax_ce: labels", &[rows.iter().product()])?;
    avg.expect_shape("softmax_ce: avg", &[1])?;
    avg.expect_dtype("softmax_ce: avg", DType::F32)?;
    let mut loss = Tensor::empty(logits.device(), &[1], DType::F32)?;
    let m = labels.numel();
    let slots = if logits.device().runs_kernels() { cuda::blocks(m) } else { cpu::chunks(m, c) };
    let mut sums = Partial::new(logits.device(), slots)?;
    let x = logits.value();
    on_device!(
        logits.device(),
        cpu => cpu::forward(loss.f32s_mut(), sums.slots(), x.f32s(), labels.i32s(), avg.f32s(), c, weight),
        cuda => cuda::forward(&mut loss, &mut sums, x, labels, avg, c, weight),
    );
    drop(sums);
    let rule = SoftmaxCeBwd { logits: logits.value().clone(), labels: labels.clone(), avg: avg.clone(), c, weight };
    Ok(tape.record([logits], loss, rule))
}

struct SoftmaxCeBwd {
    logits: Tensor,
    labels: Tensor,
    avg: Tensor,
    c: usize,
    weight: f32,
}

impl Backward for SoftmaxCeBwd {
    fn op(&self) -> &'static str {
        "softmax_ce"
    }
    fn saved_bytes(&self) -> usize {
        self.logits.bytes() + self.labels.bytes() + self.avg.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let mut dx = Tensor::empty(dy.device(), self.logits.shape(), DType::F32)?;
        let SoftmaxCeBwd { logits, labels, avg, c, weight } = &*self;
        on_device!(
            dy.device(),
            cpu => cpu::backward(dx.f32s_mut(), dy.f32s(), logits.f32s(), labels.i32s(), avg.f32s(), *c, *weight),
            cuda => cuda::backward(&mut dx, &dy, logits, labels, avg, *c, *weight),
        );
        sink.add(0, dx)
    }
}
