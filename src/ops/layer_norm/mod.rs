//! Layer normalisation over the last dimension.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Rematerialised, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "layer_norm", gradient: Gradient::Yes };

/// `y = (x - mean) * rstd * gamma + beta` over the last dimension, with `rstd = 1 / sqrt(variance + eps)`. The variance
/// is the biased one (the sum is divided by C).
///
/// Shapes: x, y `[..,C]` (M rows), floats of one type; gamma, beta `[C]` f32.
/// Saves: x, and mean and rstd as f32 `[2,M]`. If outputs are rematerialised ([`Tape::rematerialise_outputs`]), y is
/// rematerialised for the next op.
/// Gradient: x, gamma, beta; dx is written over the incoming gradient if nothing else holds it.
/// Cost: reads x and writes y; backward reads dy and x (a GPU twice, for dgamma and dbeta) and writes dx; memory-bound.
/// Errors: `Shape` if gamma or beta is not `[C]`; `Dtype`; `Value` if eps is negative.
/// Reference: Ba et al. 2016, eq. 4; torch.nn.LayerNorm.
pub fn layer_norm(tape: &mut Tape, x: &Var, gamma: &Var, beta: &Var, eps: f32) -> Result<Var> {
    let device = x.device();
    let _op = device.enter("layer_norm");
    x.value().expect_float("layer_norm: x")?;
    let Some((&c, rows)) = x.shape().split_last() else {
        return Err(Error::Shape { what: "layer_norm: x".into(), want: "[..,C]".into(), got: Vec::new() });
    };
    for (what, t) in [("layer_norm: gamma", gamma.value()), ("layer_norm: beta", beta.value())] {
        t.expect_shape(what, &[c])?;
        t.expect_dtype(what, DType::F32)?;
    }
    if eps.is_nan() || eps < 0.0 {
        return Err(Error::value("layer_norm", format!("eps is {eps}: want 0 or more, usually 1e-5")));
    }
    if wide::needed(x) {
        return wide::run(tape, &[x, gamma, beta], move |tape, v| layer_norm(tape, &v[0], &v[1], &v[2], eps));
    }
    let m = if c == 0 { 0 } else { rows.iter().product() };
    let (y, stats) = forward(x.value(), gamma.value(), beta.value(), eps, m)?;
    let rule = LayerNormBwd { x: x.value().clone(), gamma: gamma.value().clone(), stats };
    if tape.rematerialises_outputs() && tape.will_record(&[x, gamma, beta]) {
        let (x_value, gamma_value, beta_value) = (x.value().clone(), gamma.value().clone(), beta.value().clone());
        let remade = Rematerialised::new(&y, move || {
            let _op = x_value.device().enter("layer_norm");
            Ok(forward(&x_value, &gamma_value, &beta_value, eps, m)?.0)
        });
        return Ok(tape.record_rematerialised(&[x, gamma, beta], y, remade, rule));
    }
    Ok(tape.record([x, gamma, beta], y, rule))
}

/// Returns y, and mean and rstd as `[2,M]`.
fn forward(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f32, m: usize) -> Result<(Tensor, Tensor)> {
    let device = x.device();
    let mut y = Tensor::empty(device, x.shape(), x.dtype())?;
    let mut stats = Tensor::empty(device, &[2, m], DType::F32)?;
    on_device!(
        device,
        cpu => cpu::forward(y.f32s_mut(), stats.f32s_mut(), x.f32s(), gamma.f32s(), beta.f32s(), eps, gamma.numel()),
        cuda => cuda::forward(&mut y, &mut stats, x, gamma, beta, eps),
    );
    Ok((y, stats))
}

struct LayerNormBwd {
    x: Tensor,
    gamma: Tensor,
    stats: Tensor,
}

impl Backward for LayerNormBwd {
    fn op(&self) -> &'static str {
        "layer_norm"
    }

    fn saved_bytes(&self) -> usize {
        self.x.bytes() + self.stats.bytes()
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let LayerNormBwd { x, gamma, stats } = *self;
        let (device, m, c) = (x.device(), stats.dim(1), gamma.numel());
        let chunks = match (sink.needs(1) || sink.needs(2), device.runs_kernels()) {
            (false, _) => 0,
            (true, false) => cpu::chunks(m, c),
            (true, true) => cuda::chunks(m, c, x.dtype()),
        };
        let mut partial = Tensor::empty(device, &[chunks, 2, c], DType::F32)?;
        let (mut dx, dy) = if sink.needs(0) {
            let (dx, dy) = dy.into_output()?;
            (Some(dx), dy)
        } else {
            (None, Some(dy))
        };
        on_device!(
            device,
            cpu => cpu::backward(
                dx.as_mut().map(Tensor::f32s_mut), partial.f32s_mut(), dy.as_ref().map(Tensor::f32s), x.f32s(), gamma.f32s(),
                stats.f32s()),
            cuda => cuda::backward(dx.as_mut(), &mut partial, dy.as_ref(), &x, &gamma, &stats),
        );
        for i in 0..2 {
            sink.write(1 + i, device, &[c], DType::F32, |target, add| {
                on_device!(
                    device,
                    cpu => cpu::fold(target.f32s_mut(), partial.f32s(), i, add),
                    cuda => cuda::fold(target, &partial, i, add),
                );
                Ok(())
            })?;
        }
        dx.map_or(Ok(()), |dx| sink.add(0, dx))
    }
}
