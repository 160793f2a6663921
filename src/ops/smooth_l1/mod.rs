//! Smooth L1 and L1: the box losses.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::partial::Partial;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "smooth_l1", gradient: Gradient::Yes };

/// `loss = weight / avg * sum of f(d - t)` over the four columns `d` of a row's group; `f(e) = e²/(2 beta)` if
/// `|e| < beta`, else `|e| - beta/2`; `|e|` for beta 0.
///
/// The label chooses the group of four columns: the class for class-specific deltas, 0 for class-agnostic ones (K = 1);
/// rows whose label is outside `0..K` (-1, or the background K) are ignored.
///
/// Shapes: deltas `[..,4K]` f32, M rows; targets f32, 4·M elements; labels i32, M elements; avg `[1]` f32; loss `[1]`
/// f32, summed in f64.
/// Saves: deltas, targets, labels, avg.
/// Gradient: deltas: `weight / avg * f'(d - t)` in the labelled group (0 where `d = t`), 0 elsewhere.
/// Cost: reads 9·M; backward writes 4·M·K.
/// Errors: `Shape` if the rows differ or the last dimension is not 4·K; `Value` if beta is negative or not a number.
/// Reference: Girshick 2015, eq. 3; the divisor is that of the class loss.
pub fn smooth_l1(
    tape: &mut Tape,
    deltas: &Var,
    targets: &Tensor,
    labels: &Tensor,
    beta: f32,
    avg: &Tensor,
    weight: f32,
) -> Result<Var> {
    let _op = deltas.device().enter("smooth_l1");
    deltas.value().expect_dtype("smooth_l1: deltas", DType::F32)?;
    targets.expect_dtype("smooth_l1: targets", DType::F32)?;
    labels.expect_dtype("smooth_l1: labels", DType::I32)?;
    let Some((&columns, rows)) = deltas.shape().split_last().filter(|(c, _)| **c > 0 && **c % 4 == 0) else {
        let (what, want) = ("smooth_l1: deltas".into(), "[..,4K]".into());
        return Err(Error::Shape { what, want, got: deltas.shape().to_vec() });
    };
    let m: usize = rows.iter().product();
    labels.reshape(&[labels.numel()])?.expect_shape("smooth_l1: labels", &[m])?;
    targets.reshape(&[targets.numel()])?.expect_shape("smooth_l1: targets", &[4 * m])?;
    avg.expect_shape("smooth_l1: avg", &[1])?;
    avg.expect_dtype("smooth_l1: avg", DType::F32)?;
    if beta.is_nan() || beta < 0.0 {
        return Err(Error::value("smooth_l1", format!("beta {beta}: use 0 (plain L1) or more")));
    }
    let rule = SmoothL1Bwd {
        deltas: deltas.value().clone(),
        targets: targets.clone(),
        labels: labels.clone(),
        avg: avg.clone(),
        k: columns / 4,
        beta,
        weight,
    };
    let mut loss = Tensor::empty(deltas.device(), &[1], DType::F32)?;
    let slots = if deltas.device().runs_kernels() { cuda::blocks(m) } else { cpu::chunks(m) };
    let mut sums = Partial::new(deltas.device(), slots)?;
    on_device!(
        deltas.device(),
        cpu => cpu::forward(loss.f32s_mut(), sums.slots(), &rule),
        cuda => cuda::forward(&mut loss, &mut sums, &rule),
    );
    drop(sums);
    Ok(tape.record([deltas], loss, rule))
}

pub(crate) struct SmoothL1Bwd {
    deltas: Tensor,
    targets: Tensor,
    labels: Tensor,
    avg: Tensor,
    k: usize,
    beta: f32,
    weight: f32,
}

impl Backward for SmoothL1Bwd {
    fn op(&self) -> &'static str {
        "smooth_l1"
    }
    fn saved_bytes(&self) -> usize {
        self.deltas.bytes() + self.targets.bytes() + self.labels.bytes() + self.avg.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let mut dx = Tensor::empty(dy.device(), self.deltas.shape(), DType::F32)?;
        on_device!(
            dy.device(),
            cpu => cpu::backward(dx.f32s_mut(), dy.f32s(), &self),
            cuda => cuda::backward(&mut dx, &dy, &self),
        );
        sink.add(0, dx)
    }
}
