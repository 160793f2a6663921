//! Convolution on a GPU. NVIDIA GPUs use cuDNN, the simulated device uses the CPU's loops, and bias and ReLU are
//! kernels/bias.cu.

use super::ConvShape;
use crate::device::Target;
use crate::device::gpu::Pass;
use crate::error::Result;
use crate::ops::common::bias;
use crate::tensor::Tensor;

/// The workspace limit of a cuDNN algorithm. It is fixed, so that the memory plan knows it without asking cuDNN; the
/// fastest algorithm within it is taken. 64 MiB hold the transforms of every layer of the shipped recipes. Between
/// two convolutions the arena gives these bytes to other tensors.
const CUDNN_WORKSPACE_BYTES: usize = 64 << 20;

/// Elements (f32) of the workspace of one pass; `cpu` returns those of the CPU's pass.
pub(super) fn workspace(target: Target, cpu: impl FnOnce() -> usize) -> usize {
    match target {
        Target::Cpu | Target::Sim => cpu(),
        Target::Cuda => CUDNN_WORKSPACE_BYTES / 4,
    }
}

/// `y = act(conv(x, w) + b)`.
pub(super) fn forward(
    y: &mut Tensor,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    relu: bool,
    ws: &mut Tensor,
    s: &ConvShape,
) -> Result<()> {
    product(Pass::Forward, y, false, x, w, ws, s)?;
    bias::forward(y, b, relu)
}

/// One of the three products, `out (+)= pass(a, b)`, by whom this build has: NVIDIA's library, or the simulated
/// device's host.
pub(super) fn product(
    pass: Pass,
    out: &mut Tensor,
    add: bool,
    a: &Tensor,
    b: &Tensor,
    ws: &mut Tensor,
    s: &ConvShape,
) -> Result<()> {
    if out.numel() == 0 {
        return Ok(());
    }
    let device = out.device().clone();
    #[cfg(feature = "cuda-driver")]
    if let Some(cuda) = device.gpu().cuda_driver() {
        let ConvShape { n, h, w, c, o, kh, kw, stride, pad } = *s;
        let conv = crate::device::gpu::cuda::Conv { pass, n, h, w, c, o, kh, kw, stride, pad };
        if a.numel() == 0 || b.numel() == 0 {
            return if add { Ok(()) } else { out.zero() }; // a sum of nothing
        }
        return cuda.dnn().conv(&conv, out, add, a, b, ws);
    }
    #[cfg(feature = "sim")]
    if let Some(sim) = device.gpu().sim() {
        let s = *s;
        sim.product(out, a, b, ws, move |out, a, b, ws| match pass {
            Pass::Forward => super::cpu::forward(out, a, b, None, false, ws, &s),
            Pass::Data => super::cpu::backward_data(out, a, b, ws, &s),
            Pass::Weights => super::cpu::backward_weights(out, add, a, b, ws, &s),
        });
        return Ok(());
    }
    unreachable!("conv2d: {pass:?} {add} {a:?} {b:?} {ws:?} {s:?} on {device:?}, a GPU without a driver")
}
