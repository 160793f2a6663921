//! Transposed convolution that doubles a map, with the bias and the ReLU that usually follow it.

mod cpu;
mod cuda;

use super::conv2d::{Activation, ConvShape};
use super::{Gradient, OpInfo, conv2d, linear};
use crate::device::gpu::Pass;
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::bias;
use crate::ops::common::live::Live;
use crate::ops::common::relu_gradient::relu_gradient;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "deconv2x2", gradient: Gradient::Yes };

/// Sizes: x `[r,h,w,i]`, y `[r,2h,2w,o]`.
#[derive(Clone, Copy, Debug)]
struct Shape {
    r: usize,
    h: usize,
    w: usize,
    i: usize,
    o: usize,
}

impl Shape {
    /// Pixels of x.
    fn m(&self) -> usize {
        self.r * self.h * self.w
    }
    /// The convolution of y that has this one as its data gradient, with the same weight.
    fn adjoint(&self) -> ConvShape {
        let Shape { r: n, h, w, i, o } = *self;
        ConvShape { n, h: 2 * h, w: 2 * w, c: o, o: i, kh: 2, kw: 2, stride: 2, pad: 0 }
    }
    /// The layer that has the product `x w` as its data gradient.
    fn linear(&self) -> linear::cpu::LinearShape {
        linear::cpu::LinearShape { m: self.m(), n: self.i, k: 4 * self.o }
    }
}

/// `y[r, 2h + a, 2w + b, o] = act(bias[o] + sum_i x[r,h,w,i] wt[i,a,b,o])`: kernel 2, stride 2, no padding, so that
/// each pixel becomes 2×2 by the product of its channels and wt as `[I,4·O]`.
///
/// With `counts`, only the first `counts[b,0]` maps of each group of `P` are live (`R = B·P`). Like in
/// [`conv2d_live`](conv2d::conv2d_live), the CPU skips the others (y and dx are 0), and a GPU computes them.
///
/// Shapes: x `[R,H,W,I]`, wt `[I,2,2,O]` (of torch's `[I,O,2,2]` the axes 0 2 3 1), bias `[O]`, y `[R,2H,2W,O]`, floats
/// of one type, bias f32; counts i32 `[B]`, or `[B,2]` as `sample` has them.
/// Saves: x, wt, counts, and y if there is a ReLU.
/// Gradient: x, wt, bias.
/// Cost: 8·R·H·W·I·O flops each for y, dx and dwt, as one GEMM each; a GPU makes one more pass over y and dy, with bias
/// and ReLU.
/// Errors: `Shape` if the channels of x and wt or the length of the bias differ, or B does not divide R; `Dtype`;
/// `Value` if x has no channels.
/// Reference: He et al. 2017, figure 4 (the mask head's deconvolution).
pub fn deconv2x2(
    tape: &mut Tape,
    x: &Var,
    wt: &Var,
    bias: Option<&Var>,
    activation: Activation,
    counts: Option<&Tensor>,
) -> Result<Var> {
    let device = x.device().clone();
    let _op = device.enter("deconv2x2");
    let [r, h, w, i] = x.value().dims("deconv2x2: x")?;
    let [_, _, _, o] = wt.value().dims("deconv2x2: wt")?;
    x.value().expect_float("deconv2x2: x")?;
    wt.value().expect_dtype("deconv2x2: wt", x.value().dtype())?;
    wt.value().expect_shape("deconv2x2: wt", &[i, 2, 2, o])?;
    if i == 0 {
        return Err(Error::value("deconv2x2", "x has no channels"));
    }
    if let Some(b) = bias {
        b.value().expect_shape("deconv2x2: bias", &[o])?;
        b.value().expect_dtype("deconv2x2: bias", DType::F32)?;
    }
    if wide::needed(x) {
        let counts = counts.cloned();
        let inputs: Vec<&Var> = [x, wt].into_iter().chain(bias).collect();
        return wide::run(tape, &inputs, move |tape, v| {
            deconv2x2(tape, &v[0], &v[1], v.get(2), activation, counts.as_ref())
        });
    }
    let live = Live::new("deconv2x2: counts", counts, r)?;
    let s = Shape { r, h, w, i, o };
    let relu = activation == Activation::Relu;
    let dtype = x.value().dtype();
    let mut y = Tensor::empty(&device, &[r, 2 * h, 2 * w, o], dtype)?;
    {
        let mut rows = Tensor::empty(&device, &[if device.runs_kernels() { s.m() } else { 0 }, 4 * o], dtype)?;
        let len = linear::cuda::workspace(device.target(), || {
            if device.runs_kernels() { cpu::product_workspace(&s) } else { cpu::forward_workspace(&s, &live) }
        });
        let mut ws = Tensor::empty(&device, &[len], DType::F32)?;
        let (x, wt, b) = (x.value(), wt.value(), bias.map(Var::value));
        on_device!(
            &device,
            cpu => cpu::forward(y.f32s_mut(), x.f32s(), wt.f32s(), b.map(Tensor::f32s), relu, ws.f32s_mut(), &s, &live),
            cuda => cuda::forward(&mut y, &mut rows, x, wt, b, relu, &mut ws, &s),
        );
    }
    if !tape.will_record(&[x, wt]) && !bias.is_some_and(|b| b.needs_grad()) {
        return Ok(tape.constant(y));
    }
    let rule = Deconv2x2Bwd { x: x.value().clone(), wt: wt.value().clone(), y: relu.then(|| y.clone()), s, live };
    Ok(match bias {
        Some(b) => tape.record([x, wt, b], y, rule),
        None => tape.record([x, wt], y, rule),
    })
}

struct Deconv2x2Bwd {
    x: Tensor,
    wt: Tensor,
    y: Option<Tensor>,
    s: Shape,
    live: Live,
}

impl Backward for Deconv2x2Bwd {
    fn op(&self) -> &'static str {
        "deconv2x2"
    }
    fn saved_bytes(&self) -> usize {
        self.x.bytes() + self.wt.bytes() + self.y.as_ref().map_or(0, Tensor::bytes) + self.live.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Deconv2x2Bwd { x, wt, y, s, live } = *self;
        let device = dy.device().clone();
        // On a GPU as rows of the product; on the CPU the gathering of its factor is that of a convolution.
        let dy = if device.runs_kernels() { rows_of(dy, y, &s)? } else { relu_gradient(dy, y, &live)? };
        bias::write_gradient(sink, 2, &dy, 4 * s.m(), s.o, &live)?;
        let adjoint = s.adjoint();
        sink.write(1, &device, wt.shape(), wt.dtype(), |dw, accumulate| {
            let len = linear::cuda::workspace(device.target(), || {
                if device.runs_kernels() {
                    linear::cpu::backward_weights_workspace(&s.linear())
                } else {
                    conv2d::live::backward_weights_workspace(&adjoint, &live)
                }
            });
            let mut ws = Tensor::empty(&device, &[len], DType::F32)?;
            on_device!(
                &device,
                cpu => conv2d::live::backward_weights(
                    dw.f32s_mut(), accumulate, dy.f32s(), x.f32s(), ws.f32s_mut(), &adjoint, &live,
                ),
                cuda => cuda::product(Pass::Weights, dw, accumulate, &dy, &x, &mut ws, &s),
            );
            Ok(())
        })?;
        let (shape, dtype) = (x.shape().to_vec(), x.dtype());
        drop(x); // may be the last reference: its memory can serve dx
        sink.write(0, &device, &shape, dtype, |dx, _| {
            let len = linear::cuda::workspace(device.target(), || {
                if device.runs_kernels() {
                    linear::cpu::forward_workspace(&s.linear())
                } else {
                    conv2d::live::forward_workspace(&adjoint, &live)
                }
            });
            let mut ws = Tensor::empty(&device, &[len], DType::F32)?;
            on_device!(
                &device,
                cpu => conv2d::live::forward(
                    dx.f32s_mut(), dy.f32s(), wt.f32s(), None, false, ws.f32s_mut(), &adjoint, &live,
                ),
                cuda => cuda::product(Pass::Forward, dx, false, &dy, &wt, &mut ws, &s),
            );
            Ok(())
        })
    }
}

/// On a GPU: dy behind the ReLU, the four pixels of each pixel of x in a row.
fn rows_of(dy: Tensor, y: Option<Tensor>, s: &Shape) -> Result<Tensor> {
    let mut rows = Tensor::empty(dy.device(), &[s.m(), 4 * s.o], dy.dtype())?;
    on_device!(
        dy.device(),
        cpu => unreachable!("deconv2x2: {s:?} as rows on the CPU"),
        cuda => cuda::rows_of(&mut rows, &dy, y.as_ref(), s),
    );
    Ok(rows)
}
