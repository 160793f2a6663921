//! Between f32 and the 16-bit floats.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "cast", gradient: Gradient::Yes };

/// `y = x` as another type of float, to the nearest, ties to even; beyond the largest f16 it is infinite. `x` itself if
/// it is of that type.
///
/// Shapes: x, y alike; one of them f32, the other f16 or bf16.
/// Saves: nothing.
/// Gradient: x: dy, cast back.
/// Cost: reads and writes each element once; memory-bound.
/// Errors: `Dtype` if a type is no float, or neither is f32.
/// Reference: IEEE 754, roundTiesToEven.
pub fn cast(tape: &mut Tape, x: &Var, dtype: DType) -> Result<Var> {
    let _op = x.device().enter("cast");
    let from = x.value().dtype();
    if from == dtype && matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(x.clone());
    }
    let y = convert(x.value(), dtype)?;
    Ok(tape.record([x], y, CastBwd { from }))
}

fn convert(x: &Tensor, to: DType) -> Result<Tensor> {
    let known = match x.dtype() {
        DType::F32 => matches!(to, DType::F16 | DType::BF16),
        DType::F16 | DType::BF16 => to == DType::F32,
        _ => false,
    };
    if !known {
        let want = if x.dtype() == DType::F32 { "f32 to f16 or bf16" } else { "f16 or bf16 to f32" };
        let got = format!("{} to {}", x.dtype().name(), to.name());
        return Err(Error::Dtype { what: "cast: x".into(), want: want.into(), got });
    }
    let mut y = Tensor::empty(x.device(), x.shape(), to)?;
    on_device!(x.device(), cpu => cpu::convert(&mut y, x), cuda => cuda::convert(&mut y, x));
    Ok(y)
}

struct CastBwd {
    from: DType,
}

impl Backward for CastBwd {
    fn op(&self) -> &'static str {
        "cast"
    }
    fn saved_bytes(&self) -> usize {
        0
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let dx = convert(&dy, self.from)?;
        sink.add(0, dx)
    }
}
