//! Residual sum that drops its branch for some samples (stochastic depth).

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "drop_path", gradient: Gradient::Yes };

/// Decides which samples keep their branch, and the factor of a branch that is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    /// A draw is one of 2^24 numbers; the branch is dropped if it is below this.
    drops: u32,
    /// `1 / (1 - rate)`.
    scale: f32,
    layer: u32,
}

/// `y = x + s_n branch`. For each sample n, `s_n` is 0 with probability `rate`, else `1 / (1 - rate)`. With rate 0 the
/// op is the residual sum and needs no key. A dropped branch is not read.
///
/// The draw is word 0 of block `layer` of the sample's stream. Every use in a model needs its own `layer` (so do the
/// two branches of a transformer block). The backward pass repeats the draw of `s_n` from the saved key, so the key
/// must not change between the two passes.
///
/// Shapes: x, branch, y `[N,..]`, floats of one type; key i32 `[6]` (seed low and high, stage, step low and high, first
/// image).
/// Saves: the key, if rate is not 0.
/// Gradient: x (dy itself, without a copy), branch (also dy itself if rate is 0).
/// Cost: reads x and the kept branches, writes y; backward reads dy and writes dbranch; memory-bound.
/// Errors: `Shape`, `Dtype`; `Value` if the rate is not in [0, 1), or not 0 without a key.
/// Reference: Huang et al. 2016, section 3; mmcv's DropPath.
pub fn drop_path(tape: &mut Tape, x: &Var, branch: &Var, rate: f32, layer: u32, key: Option<&Tensor>) -> Result<Var> {
    let device = x.device();
    let _op = device.enter("drop_path");
    x.value().expect_float("drop_path: x")?;
    if x.shape().is_empty() {
        return Err(Error::Shape { what: "drop_path: x".into(), want: "[N,..]".into(), got: Vec::new() });
    }
    branch.value().expect_shape("drop_path: branch", x.shape())?;
    branch.value().expect_dtype("drop_path: branch", x.value().dtype())?;
    if !(0.0..1.0).contains(&rate) {
        return Err(Error::value("drop_path", format!("rate is {rate}: want 0 or more, and less than 1")));
    }
    if wide::needed(x) {
        let key = key.cloned();
        return wide::run(tape, &[x, branch], move |tape, v| drop_path(tape, &v[0], &v[1], rate, layer, key.as_ref()));
    }
    let drop = match (rate > 0.0, key) {
        (false, _) => None,
        (true, None) => {
            return Err(Error::value(
                "drop_path",
                format!("rate {rate} needs the key of the pass; without one give rate 0"),
            ));
        }
        (true, Some(key)) => {
            key.expect_shape("drop_path: key", &[6])?;
            key.expect_dtype("drop_path: key", DType::I32)?;
            let drops = (f64::from(rate) * f64::from(1 << 24)).ceil() as u32;
            let scale = (1.0 / (1.0 - f64::from(rate))) as f32;
            Some((key.clone(), Draw { drops, scale, layer }))
        }
    };
    let mut y = Tensor::empty(device, x.shape(), x.value().dtype())?;
    let how = drop.as_ref().map(|(key, draw)| (key, *draw));
    on_device!(
        device,
        cpu => cpu::forward(y.f32s_mut(), x.value().f32s(), branch.value().f32s(), x.shape()[0], how),
        cuda => cuda::forward(&mut y, x.value(), branch.value(), how),
    );
    Ok(tape.record([x, branch], y, DropPathBwd { drop }))
}

struct DropPathBwd {
    drop: Option<(Tensor, Draw)>,
}

impl Backward for DropPathBwd {
    fn op(&self) -> &'static str {
        "drop_path"
    }

    fn saved_bytes(&self) -> usize {
        self.drop.as_ref().map_or(0, |(key, _)| key.bytes())
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        if sink.needs(1) {
            let dbranch = match &self.drop {
                None => dy.clone(),
                Some((key, draw)) => {
                    let mut dbranch = Tensor::empty(dy.device(), dy.shape(), dy.dtype())?;
                    on_device!(
                        dy.device(),
                        cpu => cpu::backward(dbranch.f32s_mut(), dy.f32s(), dy.dim(0), key, *draw),
                        cuda => cuda::backward(&mut dbranch, &dy, key, *draw),
                    );
                    dbranch
                }
            };
            sink.add(1, dbranch)?;
        }
        sink.add(0, dy)
    }
}
