//! The rectifier by itself, where no convolution, linear layer or batch norm before it has one built in.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::ops::common::live::Live;
use crate::ops::common::relu_gradient::relu_gradient;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::Tensor;

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "relu", gradient: Gradient::Yes };

/// `y = max(x, 0)`; NaN stays.
///
/// Shapes: x, y of any one shape, floats of one type.
/// Saves: y, without a copy.
/// Gradient: x, 0 where `x <= 0`; written over the incoming gradient where nobody else holds it.
/// Cost: one pass each way; memory-bound.
/// Errors: `Dtype`.
/// Reference: Nair and Hinton 2010.
pub fn relu(tape: &mut Tape, x: &Var) -> Result<Var> {
    let device = x.device();
    let _op = device.enter("relu");
    x.value().expect_float("relu: x")?;
    if wide::needed(x) {
        return wide::run(tape, &[x], move |tape, v| relu(tape, &v[0]));
    }
    let mut y = Tensor::empty(device, x.shape(), x.value().dtype())?;
    on_device!(
        device,
        cpu => cpu::forward(y.f32s_mut(), x.value().f32s()),
        cuda => cuda::forward(&mut y, x.value()),
    );
    let saved = y.clone();
    Ok(tape.record([x], y, ReluBwd { y: saved }))
}

struct ReluBwd {
    y: Tensor,
}

impl Backward for ReluBwd {
    fn op(&self) -> &'static str {
        "relu"
    }

    fn saved_bytes(&self) -> usize {
        self.y.bytes()
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        sink.add(0, relu_gradient(dy, Some(self.y), &Live::all(1))?)
    }
}
