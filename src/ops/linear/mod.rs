//! Fully connected layer.

pub mod cpu;
pub(super) mod cuda;

use super::Gradient;
use super::OpInfo;
use super::conv2d::Activation;
use crate::device::gpu::Pass;
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::bias;
use crate::ops::common::live::Live;
use crate::ops::common::relu_gradient::relu_gradient;
use crate::ops::common::wide;
use crate::tape::{Backward, Saved, Sink, Tape, Var};
use crate::tensor::elementwise;
use crate::tensor::{DType, Tensor};
use cpu::LinearShape;

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "linear", gradient: Gradient::Yes };

/// `y = act(x wᵀ + b)`.
///
/// Shapes: x `[M, ...]` with `C` elements a row, w `[O,C]`, bias `[O]`, y `[M,O]`, floats of one type, bias f32.
/// Saves: x (or its recipe, if it is rematerialised), w, and y if there is a ReLU.
/// Gradient: x, w, bias.
/// Cost: 2·M·O·C flops each for y, dx and dw, as one GEMM each.
/// Errors: `Shape` if the rows of x and w differ in length, or the length of the bias is not O; `Dtype`.
/// Reference: none needed.
pub fn linear(tape: &mut Tape, x: &Var, w: &Var, bias: Option<&Var>, activation: Activation) -> Result<Var> {
    rows(tape, x, w, bias, activation, &x.shape()[..x.shape().len().min(1)], true)
}

/// Like [`linear`], but over the last dimension, so that every pixel is a row (a token).
///
/// Shapes: x `[..,C]`, w `[O,C]`, bias `[O]`, y `[..,O]`, floats of one type, bias f32.
pub fn linear_last(tape: &mut Tape, x: &Var, w: &Var, bias: Option<&Var>, activation: Activation) -> Result<Var> {
    let rank = x.shape().len();
    rows(tape, x, w, bias, activation, &x.shape()[..rank.saturating_sub(1)], true)
}

/// A row of x consists of all dimensions after the leading ones.
fn rows(
    tape: &mut Tape,
    x: &Var,
    w: &Var,
    bias: Option<&Var>,
    activation: Activation,
    leading: &[usize],
    is_read: bool,
) -> Result<Var> {
    let device = x.device().clone();
    let _op = device.enter("linear");
    let [o, c] = w.value().dims("linear: w")?;
    x.value().expect_float("linear: x")?;
    w.value().expect_dtype("linear: w", x.value().dtype())?;
    let m = if x.shape().is_empty() { 0 } else { leading.iter().product() };
    if x.value().numel() != m * c || x.shape()[leading.len()..].iter().product::<usize>() != c {
        return Err(Error::Shape { what: "linear: x".into(), want: format!("[M,{c}]"), got: x.shape().to_vec() });
    }
    if let Some(b) = bias {
        b.value().expect_shape("linear: bias", &[o])?;
        b.value().expect_dtype("linear: bias", DType::F32)?;
    }
    if wide::needed(x) {
        let (inputs, depth): (Vec<&Var>, _) = ([x, w].into_iter().chain(bias).collect(), leading.len());
        return wide::run_product(tape, &inputs, move |tape, v, is_read| {
            rows(tape, &v[0], &v[1], v.get(2), activation, &v[0].shape()[..depth], is_read)
        });
    }
    let relu = activation == Activation::Relu;
    let mut y = Tensor::empty(&device, &[leading, &[o]].concat(), x.value().dtype())?;
    let s = LinearShape { m, n: o, k: c };
    if !is_read && !relu {
        elementwise::fill(&mut y, 0.0)?; // the rule wants x and w alone
    } else {
        let mut ws =
            Tensor::empty(&device, &[cuda::workspace(device.target(), || cpu::forward_workspace(&s))], DType::F32)?;
        let (x, w, b) = (x.value(), w.value(), bias.map(Var::value));
        on_device!(
            &device,
            cpu => cpu::forward(y.f32s_mut(), x.f32s(), w.f32s(), b.map(Tensor::f32s), relu, ws.f32s_mut(), &s),
            cuda => cuda::forward(&mut y, x, w, b, relu, &mut ws, &s),
        );
    }
    let rule =
        LinearBwd { x: x.saved(), shape: x.shape().to_vec(), w: w.value().clone(), y: relu.then(|| y.clone()), s };
    Ok(match bias {
        Some(b) => tape.record([x, w, b], y, rule),
        None => tape.record([x, w], y, rule),
    })
}

struct LinearBwd {
    x: Saved,
    /// Shape of x.
    shape: Vec<usize>,
    w: Tensor,
    y: Option<Tensor>,
    s: LinearShape,
}

impl Backward for LinearBwd {
    fn op(&self) -> &'static str {
        "linear"
    }
    fn saved_bytes(&self) -> usize {
        self.x.bytes() + self.w.bytes() + self.y.as_ref().map_or(0, Tensor::bytes)
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let LinearBwd { x, shape, w, y, s } = *self;
        let device = dy.device().clone();
        let live = Live::all(s.m);
        let dy = relu_gradient(dy, y, &live)?;
        bias::write_gradient(sink, 2, &dy, s.m, s.n, &live)?;
        sink.write(1, &device, &[s.n, s.k], w.dtype(), |dw, accumulate| {
            let x = x.get()?;
            let mut ws = Tensor::empty(
                &device,
                &[cuda::workspace(device.target(), || cpu::backward_weights_workspace(&s))],
                DType::F32,
            )?;
            on_device!(
                &device,
                cpu => cpu::backward_weights(dw.f32s_mut(), accumulate, x.f32s(), dy.f32s(), ws.f32s_mut(), &s),
                cuda => cuda::product(Pass::Weights, dw, accumulate, &x, &dy, None, &mut ws, &s).map(drop),
            );
            Ok(())
        })?;
        // x is released by now (or was not needed), so dx can take its memory.
        sink.write(0, &device, &shape, w.dtype(), |dx, _| {
            let mut ws = Tensor::empty(
                &device,
                &[cuda::workspace(device.target(), || cpu::backward_data_workspace(&s))],
                DType::F32,
            )?;
            on_device!(
                &device,
                cpu => cpu::backward_data(dx.f32s_mut(), dy.f32s(), w.f32s(), ws.f32s_mut(), &s),
                cuda => cuda::product(Pass::Data, dx, false, &dy, &w, None, &mut ws, &s).map(drop),
            );
            Ok(())
        })
    }
}
