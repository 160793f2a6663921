//! Fully connected layers on a GPU: cuBLASLt's products on NVIDIA's, with the bias in their epilogue; the CPU's products on the
//! simulated device; kernels/bias.cu for the rest.

use super::cpu::LinearShape;
use crate::device::Target;
use crate::error::Result;
use crate::tensor::Tensor;

/// What cuBLASLt recommends as workspace on Hopper (32 MiB) is enough on older devices.
const CUBLASLT_WORKSPACE_BYTES: usize = (32 << 20) + 256; // and room to begin at a multiple of 256

/// Elements (f32) of the workspace of one pass, if the CPU's pass takes `cpu`.
pub(super) fn workspace(target: Target, cpu: impl FnOnce() -> usize) -> usize {
    match target {
        Target::Cpu | Target::Sim => cpu(),
        Target::Cuda => CUBLASLT_WORKSPACE_BYTES / 4,
    }
}

/// `y = act(x w^T + b)`.
pub(super) fn forward(
    y: &mut Tensor,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    relu: bool,
    ws: &mut Tensor,
    s: &LinearShape,
) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    product::forward(y, x, w, b, relu, ws, s)
}

/// `dx = dy w`.
pub(super) fn backward_data(dx: &mut Tensor, dy: &Tensor, w: &Tensor, ws: &mut Tensor, s: &LinearShape) -> Result<()> {
    match (dx.numel(), s.n) {
        (0, _) => Ok(()),
        (_, 0) => dx.zero(),
        _ => product::backward_data(dx, dy, w, ws, s),
    }
}

/// `dw (+)= dy^T x`.
pub(super) fn backward_weights(
    dw: &mut Tensor,
    accumulate: bool,
    x: &Tensor,
    dy: &Tensor,
    ws: &mut Tensor,
    s: &LinearShape,
) -> Result<()> {
    if dw.numel() > 0 { product::backward_weights(dw, accumulate, x, dy, ws, s) } else { Ok(()) }
}

/// Who computes: a build has the simulated device, NVIDIA's driver, both or none.
mod product {
    use super::*;
    #[cfg(feature = "cuda-driver")]
    use crate::device::gpu::cuda::{Matmul, Side};
    #[cfg(any(feature = "sim", feature = "cuda-driver"))]
    use crate::ops::bias;
    #[cfg(feature = "sim")]
    use crate::{device::gpu::sim::HostSlice, ops::linear::cpu};

    pub(super) fn forward(
        y: &mut Tensor,
        x: &Tensor,
        w: &Tensor,
        b: Option<&Tensor>,
        relu: bool,
        ws: &mut Tensor,
        s: &LinearShape,
    ) -> Result<()> {
        let device = y.device().clone();
        #[cfg(feature = "cuda-driver")]
        if let Some(cuda) = device.gpu().cuda_driver() {
            let product = Matmul { m: s.m, n: s.n, k: s.k, a: Side::Rows, b: Side::Columns };
            // The ReLU not in the epilogue: it may turn NaN into 0. A bias without features in is all of y.
            if s.k == 0 {
                y.zero()?;
                return bias::forward(y, b, relu);
            }
            cuda.matmul(&product, y, false, x, w, b, ws)?;
            return bias::forward(y, None, relu);
        }
        #[cfg(feature = "sim")]
        if let Some(sim) = device.gpu().sim() {
            let (s, slice) = (*s, HostSlice::of(y));
            let (x, w, ws) = (HostSlice::of(x), HostSlice::of(w), HostSlice::of(ws));
            // SAFETY: slices of different tensors of this device, which the arena keeps while the step runs.
            sim.host(move || unsafe { cpu::forward(slice.write(), x.read(), w.read(), None, false, ws.write(), &s) });
            return bias::forward(y, b, relu);
        }
        unreachable!("linear: {device:?} {x:?} {w:?} {b:?} {relu} {ws:?} {s:?}: a GPU without a driver")
    }

    pub(super) fn backward_data(
        dx: &mut Tensor,
        dy: &Tensor,
        w: &Tensor,
        ws: &mut Tensor,
        s: &LinearShape,
    ) -> Result<()> {
        let device = dx.device().clone();
        #[cfg(feature = "cuda-driver")]
        if let Some(cuda) = device.gpu().cuda_driver() {
            let product = Matmul { m: s.m, n: s.k, k: s.n, a: Side::Rows, b: Side::Rows };
            return cuda.matmul(&product, dx, false, dy, w, None, ws);
        }
        #[cfg(feature = "sim")]
        if let Some(sim) = device.gpu().sim() {
            let (s, dx, dy, w, ws) = (*s, HostSlice::of(dx), HostSlice::of(dy), HostSlice::of(w), HostSlice::of(ws));
            // SAFETY: as in `forward`.
            sim.host(move || unsafe { cpu::backward_data(dx.write(), dy.read(), w.read(), ws.write(), &s) });
            return Ok(());
        }
        unreachable!("linear: {device:?} {dy:?} {w:?} {ws:?} {s:?}: a GPU without a driver")
    }

    pub(super) fn backward_weights(
        dw: &mut Tensor,
        accumulate: bool,
        x: &Tensor,
        dy: &Tensor,
        ws: &mut Tensor,
        s: &LinearShape,
    ) -> Result<()> {
        let device = dw.device().clone();
        #[cfg(feature = "cuda-driver")]
        if let Some(cuda) = device.gpu().cuda_driver() {
            if s.m == 0 {
                return if accumulate { Ok(()) } else { dw.zero() };
            }
            let product = Matmul { m: s.n, n: s.k, k: s.m, a: Side::Columns, b: Side::Rows };
            return cuda.matmul(&product, dw, accumulate, dy, x, None, ws);
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
        unreachable!("linear: {device:?} {accumulate} {x:?} {dy:?} {ws:?} {s:?}: a GPU without a driver")
    }
}
