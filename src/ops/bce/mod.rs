//! Binary cross-entropy from logits: object or not, in the region proposal network.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::ops::common::partial::Partial;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "bce", gradient: Gradient::Yes };

/// `loss = weight / avg * sum over target in {0,1} of (softplus(x) - target x)`, the cross-entropy of `sigmoid(x)`;
/// other targets (-1) are ignored.
///
/// Shapes: logits f32, any shape of M elements; target `[M]` i32; avg `[1]` f32; loss `[1]` f32, summed in f64.
/// Saves: logits, target, avg.
/// Gradient: logits: `weight / avg * (sigmoid(x) - target)`, 0 where ignored.
/// Cost: reads 2·M; one exponential and one logarithm an element.
/// Errors: `Shape` if logits and target differ in size.
/// Reference: Ren et al. 2015, eq. 1; the divisor is `softmax_ce`'s `AvgFactor::Rpn`.
pub fn bce(tape: &mut Tape, logits: &Var, target: &Tensor, avg: &Tensor, weight: f32) -> Result<Var> {
    let _op = logits.device().enter("bce");
    logits.value().expect_dtype("bce: logits", DType::F32)?;
    target.expect_dtype("bce: target", DType::I32)?;
    target.reshape(&[target.numel()])?.expect_shape("bce: target", &[logits.value().numel()])?;
    avg.expect_shape("bce: avg", &[1])?;
    avg.expect_dtype("bce: avg", DType::F32)?;
    let mut loss = Tensor::empty(logits.device(), &[1], DType::F32)?;
    let m = target.numel();
    let slots = if logits.device().runs_kernels() { cuda::blocks(m) } else { cpu::chunks(m) };
    let mut sums = Partial::new(logits.device(), slots)?;
    on_device!(
        logits.device(),
        cpu => cpu::forward(loss.f32s_mut(), sums.slots(), logits.value().f32s(), target.i32s(), avg.f32s(), weight),
        cuda => cuda::forward(&mut loss, &mut sums, logits.value(), target, avg, weight),
    );
    drop(sums);
    let rule = BceBwd { logits: logits.value().clone(), target: target.clone(), avg: avg.clone(), weight };
    Ok(tape.record([logits], loss, rule))
}

struct BceBwd {
    logits: Tensor,
    target: Tensor,
    avg: Tensor,
    weight: f32,
}

impl Backward for BceBwd {
    fn op(&self) -> &'static str {
        "bce"
    }
    fn saved_bytes(&self) -> usize {
        self.logits.bytes() + self.target.bytes() + self.avg.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let mut dx = Tensor::empty(dy.device(), self.logits.shape(), DType::F32)?;
        let BceBwd { logits, target, avg, weight } = &*self;
        on_device!(
            dy.device(),
            cpu => cpu::backward(dx.f32s_mut(), dy.f32s(), logits.f32s(), target.i32s(), avg.f32s(), *weight),
            cuda => cuda::backward(&mut dx, &dy, logits, target, avg, *weight),
        );
        sink.add(0, dx)
    }
}
