//! Focal loss on logits: the class loss of dense detectors, in which almost every anchor is background.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::partial::Partial;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "sigmoid_focal", gradient: Gradient::Yes };

/// `loss = weight / avg * sum over rows and classes of a softplus(s) sigmoid(s)^gamma`. For the row's own class
/// `s = -x` and `a = alpha`; for every other class `s = x` and `a = 1 - alpha`. So `softplus(s)` is the cross-entropy of
/// `sigmoid(x)`, and `sigmoid(s)` is `1 - p_t`. Rows with label K (background) have no own class; rows with any other
/// label outside `0..K` (-1) are ignored.
///
/// Shapes: logits `[..,K]` f32, M rows; labels i32, M elements; avg `[1]` f32; loss `[1]` f32, summed in f64.
/// Saves: logits, labels, avg.
/// Gradient: logits: `weight / avg * a sigmoid(s)^gamma (sigmoid(s) + gamma softplus(s) sigmoid(-s)) ds/dx`, 0 in
/// ignored rows.
/// Cost: reads M·K, backward reads and writes M·K; one exponential and one division an element, and a second
/// exponential unless gamma is 2.
/// Errors: `Shape` if there is not one label a row or K is 0; `Value` if alpha is not in [0, 1] or gamma is negative or
/// not finite.
/// Reference: Lin et al. 2017, eq. 5; the divisor is `softmax_ce`'s `AvgFactor::Dense`.
pub fn sigmoid_focal(
    tape: &mut Tape,
    logits: &Var,
    labels: &Tensor,
    avg: &Tensor,
    alpha: f32,
    gamma: f32,
    weight: f32,
) -> Result<Var> {
    let _op = logits.device().enter("sigmoid_focal");
    logits.value().expect_dtype("sigmoid_focal: logits", DType::F32)?;
    labels.expect_dtype("sigmoid_focal: labels", DType::I32)?;
    let Some((&k, rows)) = logits.shape().split_last().filter(|(k, _)| **k > 0) else {
        let (what, want) = ("sigmoid_focal: logits".into(), "[..,K]".into());
        return Err(Error::Shape { what, want, got: logits.shape().to_vec() });
    };
    labels.reshape(&[labels.numel()])?.expect_shape("sigmoid_focal: labels", &[rows.iter().product()])?;
    avg.expect_shape("sigmoid_focal: avg", &[1])?;
    avg.expect_dtype("sigmoid_focal: avg", DType::F32)?;
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::value("sigmoid_focal", format!("alpha {alpha}: want a share in [0, 1]")));
    }
    if !(gamma >= 0.0 && gamma.is_finite()) {
        return Err(Error::value("sigmoid_focal", format!("gamma {gamma}: use 0 (plain cross-entropy) or more")));
    }
    let how = Focal { k, alpha, gamma, weight };
    let mut loss = Tensor::empty(logits.device(), &[1], DType::F32)?;
    let m = labels.numel();
    let slots = if logits.device().runs_kernels() { cuda::blocks(m, k) } else { cpu::chunks(m, k) };
    let mut sums = Partial::new(logits.device(), slots)?;
    let x = logits.value();
    on_device!(
        logits.device(),
        cpu => cpu::forward(loss.f32s_mut(), sums.slots(), x.f32s(), labels.i32s(), avg.f32s(), how),
        cuda => cuda::forward(&mut loss, &mut sums, x, labels, avg, how),
    );
    drop(sums);
    let rule = SigmoidFocalBwd { logits: logits.value().clone(), labels: labels.clone(), avg: avg.clone(), how };
    Ok(tape.record([logits], loss, rule))
}

/// The parameters of a loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Focal {
    k: usize,
    alpha: f32,
    gamma: f32,
    weight: f32,
}

struct SigmoidFocalBwd {
    logits: Tensor,
    labels: Tensor,
    avg: Tensor,
    how: Focal,
}

impl Backward for SigmoidFocalBwd {
    fn op(&self) -> &'static str {
        "sigmoid_focal"
    }
    fn saved_bytes(&self) -> usize {
        self.logits.bytes() + self.labels.bytes() + self.avg.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let mut dx = Tensor::empty(dy.device(), self.logits.shape(), DType::F32)?;
        let SigmoidFocalBwd { logits, labels, avg, how } = &*self;
        on_device!(
            dy.device(),
            cpu => cpu::backward(dx.f32s_mut(), dy.f32s(), logits.f32s(), labels.i32s(), avg.f32s(), *how),
            cuda => cuda::backward(&mut dx, &dy, logits, labels, avg, *how),
        );
        sink.add(0, dx)
    }
}
