//! The Gaussian error linear unit, exact (by the error function, not by a tanh).

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::Result;
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Rematerialised, Sink, Tape, Var};
use crate::tensor::Tensor;

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "gelu", gradient: Gradient::Yes };

/// `y = x Φ(x)`, with `Φ` the normal distribution's cumulative function; `Φ` is within 1.5e-7. At -∞ it is 0 within
/// 1e-31.
///
/// Shapes: x, y of any one shape, floats of one type.
/// Saves: x. If outputs are rematerialised ([`Tape::rematerialise_outputs`]), y is rematerialised for the next op.
/// Gradient: x; written over the incoming gradient where nobody else holds it.
/// Cost: one pass each way, about 20 operations an element; memory-bound.
/// Errors: `Dtype`.
/// Reference: Hendrycks and Gimpel 2016; torch's gelu with approximate = none.
pub fn gelu(tape: &mut Tape, x: &Var) -> Result<Var> {
    let device = x.device();
    let _op = device.enter("gelu");
    x.value().expect_float("gelu: x")?;
    if wide::needed(x) {
        return wide::run(tape, &[x], move |tape, v| gelu(tape, &v[0]));
    }
    let y = forward(x.value())?;
    let rule = GeluBwd { x: x.value().clone() };
    if tape.rematerialises_outputs() && tape.will_record(&[x]) {
        let x_value = x.value().clone();
        let remade = Rematerialised::new(&y, move || {
            let _op = x_value.device().enter("gelu");
            forward(&x_value)
        });
        return Ok(tape.record_rematerialised(&[x], y, remade, rule));
    }
    Ok(tape.record([x], y, rule))
}

fn forward(x: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::empty(x.device(), x.shape(), x.dtype())?;
    on_device!(
        x.device(),
        cpu => cpu::forward(y.f32s_mut(), x.f32s()),
        cuda => cuda::forward(&mut y, x),
    );
    Ok(y)
}

struct GeluBwd {
    x: Tensor,
}

impl Backward for GeluBwd {
    fn op(&self) -> &'static str {
        "gelu"
    }

    fn saved_bytes(&self) -> usize {
        self.x.bytes()
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let (mut dx, dy) = dy.into_output()?;
        on_device!(
            self.x.device(),
            cpu => cpu::backward(dx.f32s_mut(), dy.as_ref().map(Tensor::f32s), self.x.f32s()),
            cuda => cuda::backward(&mut dx, dy.as_ref(), &self.x),
        );
        sink.add(0, dx)
    }
}
