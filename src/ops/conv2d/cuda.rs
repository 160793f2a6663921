//! Convolution on a GPU: cuDNN's on NVIDIA's, the CPU's on the simulated device; bias and ReLU are kernels/bias.cu.

use super::ConvShape;
use crate::device::Target;
use crate::error::Result;
use crate::ops::bias;
use crate::tensor::Tensor;

/// What an algorithm may use, so that the plan knows it before cuDNN is asked: the fastest algorithm within it is taken.
/// 64 MiB hold the transforms of every layer of the shipped recipes; the arena gives the bytes to others between two convolutions.
const CUDNN_WORKSPACE_BYTES: usize = 64 << 20;

/// Elements (f32) of the workspace of one pass, if the CPU's pass takes `cpu`.
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
    if y.numel() > 0 {
        product::forward(y, x, w, ws, s)?;
    }
    bias::forward(y, b, relu)
}

/// `dx = conv^T(dy, w)`.
pub(super) fn backward_data(dx: &mut Tensor, dy: &Tensor, w: &Tensor, ws: &mut Tensor, s: &ConvShape) -> Result<()> {
    if dx.numel() > 0 { product::backward_data(dx, dy, w, ws, s) } else { Ok(()) }
}

/// `dw (+)= x * dy`.
pub(super) fn backward_weights(
    dw: &mut Tensor,
    accumulate: bool,
    x: &Tensor,
    dy: &Tensor,
    ws: &mut Tensor,
    s: &ConvShape,
) -> Result<()> {
    if dw.numel() > 0 { product::backward_weights(dw, accumulate, x, dy, ws, s) } else { Ok(()) }
}

/// Who computes: a build has the simulated device, NVIDIA's driver, both or none.
mod product {
    use super::*;
    #[cfg(feature = "cuda-driver")]
    use crate::device::gpu::cuda::{Conv, ConvPass};
    #[cfg(feature = "sim")]
    use crate::{device::gpu::sim::HostSlice, ops::conv2d::cpu};

    #[cfg(feature = "cuda-driver")]
    fn conv(s: &ConvShape, pass: ConvPass) -> Conv {
        Conv { pass, n: s.n, h: s.h, w: s.w, c: s.c, o: s.o, kh: s.kh, kw: s.kw, stride: s.stride, pad: s.pad }
    }

    pub(super) fn forward(y: &mut Tensor, x: &Tensor, w: &Tensor, ws: &mut Tensor, s: &ConvShape) -> Result<()> {
        let device = y.device().clone();
        #[cfg(feature = "cuda-driver")]
        if let Some(cuda) = device.gpu().cuda_driver() {
            return cuda.conv(&conv(s, ConvPass::Forward), y, false, x, w, ws);
        }
        #[cfg(feature = "sim")]
        if let Some(sim) = device.gpu().sim() {
            let (s, y, x, w, ws) = (*s, HostSlice::of(y), HostSlice::of(x), HostSlice::of(w), HostSlice::of(ws));
            // SAFETY: slices of different tensors of this device, which the arena keeps while the step runs.
            sim.host(move || unsafe { cpu::forward(y.write(), x.read(), w.read(), None, false, ws.write(), &s) });
            return Ok(());
        }
        unreachable!("conv2d: {device:?} {x:?} {w:?} {ws:?} {s:?}: a GPU without a driver")
    }

    pub(super) fn backward_data(
        dx: &mut Tensor,
        dy: &Tensor,
        w: &Tensor,
        ws: &mut Tensor,
        s: &ConvShape,
    ) -> Result<()> {
        let device = dx.device().clone();
        #[cfg(feature = "cuda-driver")]
        if let Some(cuda) = device.gpu().cuda_driver() {
            return cuda.conv(&conv(s, ConvPass::Data), dx, false, dy, w, ws);
        }
        #[cfg(feature = "sim")]
        if let Some(sim) = device.gpu().sim() {
            let (s, dx, dy, w, ws) = (*s, HostSlice::of(dx), HostSlice::of(dy), HostSlice::of(w), HostSlice::of(ws));
            // SAFETY: as in `forward`.
            sim.host(move || unsafe { cpu::backward_data(dx.write(), dy.read(), w.read(), ws.write(), &s) });
            return Ok(());
        }
        unreachable!("conv2d: {device:?} {dy:?} {w:?} {ws:?} {s:?}: a GPU without a driver")
    }

    pub(super) fn backward_weights(
        dw: &mut Tensor,
        accumulate: bool,
        x: &Tensor,
        dy: &Tensor,
        ws: &mut Tensor,
        s: &ConvShape,
    ) -> Result<()> {
        let device = dw.device().clone();
        #[cfg(feature = "cuda-driver")]
        if let Some(cuda) = device.gpu().cuda_driver() {
            return cuda.conv(&conv(s, ConvPass::Weights), dw, accumulate, x, dy, ws);
        }
        #[cfg(feature = "sim")]
        if let Some(sim) = device.gpu().sim() {
            let (s, dw, x, dy, ws) = (*s, HostSlice::of(dw), HostSlice::of(x), HostSlice::of(dy), HostSlice::of(ws));
            // SAFETY: as in `forward`.
            let run = move || unsafe {
                cpu::backward_weights(dw.write(), accumulate, x.read(), dy.read(), ws.write(), &s);
            };
            sim.host(run);
            return Ok(());
        }
        unreachable!("conv2d: {device:?} {accumulate} {x:?} {dy:?} {ws:?} {s:?}: a GPU without a driver")
    }
}
