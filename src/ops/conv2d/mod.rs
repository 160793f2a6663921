//! Convolution, with an optional bias and ReLU.

pub mod cpu;
mod cuda;
pub(crate) mod gather;
pub(crate) mod implicit;
pub(super) mod live;
pub(super) mod pack;
mod transform;
pub(crate) mod weights;
mod winograd;
mod winograd_weights;

use super::Gradient;
use super::OpInfo;
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
pub use cpu::ConvShape;

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "conv2d", gradient: Gradient::Yes };

/// The activation applied to the output of a convolution or linear layer in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `max(0, y)`; NaN stays.
    Relu,
}

/// `y[n,oy,ox,o] = act(b[o] + sum_{ky,kx,c} x[n, oy s + ky - p, ox s + kx - p, c] w[o,ky,kx,c])`, zeros outside the
/// image.
///
/// Shapes: x `[N,H,W,C]`, w `[O,KH,KW,C]`, bias `[O]`, y `[N,OH,OW,O]`, floats of one type, bias f32;
/// `OH = (H + 2 pad - KH) / stride + 1`.
/// Saves: x (or its recipe, if it is rematerialised), w, and y if there is a ReLU.
/// Gradient: x, w, bias.
/// Cost: 2·N·OH·OW·O·KH·KW·C flops each for y, dx and dw; Winograd's minimal filtering for 3×3 with stride 1, GEMM for
/// the rest.
/// Errors: `Shape` if the channels of x and w differ or the length of the bias is not O; `Dtype`; `Value` if the stride
/// is 0 or the kernel is larger than the padded map.
/// Reference: Lavin and Gray 2016 (arXiv 1509.09308) for the Winograd form.
pub fn conv2d(
    tape: &mut Tape,
    x: &Var,
    w: &Var,
    bias: Option<&Var>,
    stride_px: usize,
    pad: usize,
    activation: Activation,
) -> Result<Var> {
    let live = Live::all(x.shape().first().copied().unwrap_or(0));
    of_live(tape, x, w, bias, (stride_px, pad), activation, live, true)
}

/// [`conv2d`] on a padded batch of `N = B·P` images: in each group of `P` images, only the first `counts[b,0]` (clamped
/// to 0..P) are live. On the CPU the other images cost only the writing of zeros: their y and dx are 0, and their x and
/// dy are not read. On a GPU they are computed like the live ones, and their dy must be 0 (a masked loss ensures that).
///
/// Shapes: like [`conv2d`]; counts i32 `[B]`, or `[B,2]` (positives and negatives, from `sample`), of which only the
/// first column is read.
/// Saves: like [`conv2d`], and counts.
/// Errors: like [`conv2d`]; `Shape` if B does not divide N.
pub fn conv2d_live(
    tape: &mut Tape,
    x: &Var,
    w: &Var,
    bias: Option<&Var>,
    stride_px: usize,
    pad: usize,
    activation: Activation,
    counts: &Tensor,
) -> Result<Var> {
    let live = Live::new("conv2d: counts", Some(counts), x.shape().first().copied().unwrap_or(0))?;
    of_live(tape, x, w, bias, (stride_px, pad), activation, live, true)
}

fn of_live(
    tape: &mut Tape,
    x: &Var,
    w: &Var,
    bias: Option<&Var>,
    (stride_px, pad): (usize, usize),
    activation: Activation,
    live: Live,
    is_read: bool,
) -> Result<Var> {
    let device = x.device().clone();
    let _op = device.enter("conv2d");
    let [n, h, wd, c] = x.value().dims("conv2d: x")?;
    let [o, kh, kw, wc] = w.value().dims("conv2d: w")?;
    x.value().expect_float("conv2d: x")?;
    w.value().expect_dtype("conv2d: w", x.value().dtype())?;
    if wc != c {
        return Err(Error::Shape { what: "conv2d: w".into(), want: format!("[O,KH,KW,{c}]"), got: w.shape().to_vec() });
    }
    if let Some(b) = bias {
        b.value().expect_shape("conv2d: bias", &[o])?;
        b.value().expect_dtype("conv2d: bias", DType::F32)?;
    }
    if stride_px == 0 || kh == 0 || kw == 0 || h + 2 * pad < kh || wd + 2 * pad < kw {
        return Err(Error::value(
            "conv2d",
            format!("a {kh}x{kw} kernel with stride {stride_px} and padding {pad} does not fit a {h}x{wd} map"),
        ));
    }
    if wide::needed(x) {
        let inputs: Vec<&Var> = [x, w].into_iter().chain(bias).collect();
        return wide::run_product(tape, &inputs, move |tape, v, is_read| {
            of_live(tape, &v[0], &v[1], v.get(2), (stride_px, pad), activation, live.clone(), is_read)
        });
    }
    let s = ConvShape { n, h, w: wd, c, o, kh, kw, stride: stride_px, pad };
    let relu = activation == Activation::Relu;
    let mut y = Tensor::empty(&device, &[n, s.oh(), s.ow(), o], x.value().dtype())?;
    if !is_read && !relu {
        elementwise::fill(&mut y, 0.0)?; // the rule wants x and w alone
    } else {
        let mut ws = Tensor::empty(
            &device,
            &[cuda::workspace(device.target(), || live::forward_workspace(&s, &live))],
            DType::F32,
        )?;
        let (x, w, b) = (x.value(), w.value(), bias.map(Var::value));
        on_device!(
            &device,
            cpu => live::forward(y.f32s_mut(), x.f32s(), w.f32s(), b.map(Tensor::f32s), relu, ws.f32s_mut(), &s, &live),
            cuda => cuda::forward(&mut y, x, w, b, relu, &mut ws, &s),
        );
    }
    if !tape.will_record(&[x, w]) && !bias.is_some_and(|b| b.needs_grad()) {
        return Ok(tape.constant(y));
    }
    let rule = Conv2dBwd { x: x.saved(), w: w.value().clone(), y: relu.then(|| y.clone()), s, live };
    Ok(match bias {
        Some(b) => tape.record([x, w, b], y, rule),
        None => tape.record([x, w], y, rule),
    })
}

struct Conv2dBwd {
    x: Saved,
    w: Tensor,
    y: Option<Tensor>,
    s: ConvShape,
    live: Live,
}

impl Backward for Conv2dBwd {
    fn op(&self) -> &'static str {
        "conv2d"
    }
    fn saved_bytes(&self) -> usize {
        self.x.bytes() + self.w.bytes() + self.y.as_ref().map_or(0, Tensor::bytes) + self.live.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Conv2dBwd { x, w, y, s, live } = *self;
        let device = dy.device().clone();
        let dy = relu_gradient(dy, y, &live)?;
        bias::write_gradient(sink, 2, &dy, s.m(), s.o, &live)?;
        sink.write(1, &device, w.shape(), w.dtype(), |dw, accumulate| {
            let x = x.get()?;
            let mut ws = Tensor::empty(
                &device,
                &[cuda::workspace(device.target(), || live::backward_weights_workspace(&s, &live))],
                DType::F32,
            )?;
            on_device!(
                &device,
                cpu => live::backward_weights(dw.f32s_mut(), accumulate, x.f32s(), dy.f32s(), ws.f32s_mut(), &s, &live),
                cuda => cuda::product(Pass::Weights, dw, accumulate, &x, &dy, &mut ws, &s),
            );
            Ok(())
        })?;
        // x is released by now (or was not needed), so dx can take its memory.
        sink.write(0, &device, &[s.n, s.h, s.w, s.c], w.dtype(), |dx, _| {
            let mut ws = Tensor::empty(
                &device,
                &[cuda::workspace(device.target(), || live::backward_data_workspace(&s, &live))],
                DType::F32,
            )?;
            on_device!(
                &device,
                cpu => live::backward_data(dx.f32s_mut(), dy.f32s(), w.f32s(), ws.f32s_mut(), &s, &live),
                cuda => cuda::product(Pass::Data, dx, false, &dy, &w, &mut ws, &s),
            );
            Ok(())
        })
    }
}
