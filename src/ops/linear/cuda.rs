//! Fully connected layers on a GPU: cuBLASLt's products on NVIDIA's, with bias and ReLU in their epilogue; the CPU's products
//! and kernels/bias.cu on the simulated device.

use super::cpu::LinearShape;
use crate::device::Target;
use crate::error::Result;
use crate::tensor::Tensor;

/// What cuBLASLt recommends as workspace on Hopper (32 MiB) is enough on older devices.
const CUBLASLT_WORKSPACE_BYTES: usize = 32 << 20;

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
    if dx.numel() > 0 { product::backward_data(dx, dy, w, ws, s) } else { Ok(()) }
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
    use crate::device::gpu::cuda::{Epilogue, Matmul, Side};
    #[cfg(feature = "sim")]
    use crate::{
        device::gpu::sim::HostSlice,
        ops::{bias, linear::cpu},
    };

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
            return cuda.matmul(&product, y, false, x, w, Epilogue { bias: b, relu }, ws);
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
            return cuda.matmul(&product, dx, false, dy, w, Epilogue::default(), ws);
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
                return if accumulate { Ok(()) } else { crate::ops::elementwise::fill(dw, 0.0) };
            }
            let product = Matmul { m: s.n, n: s.k, k: s.m, a: Side::Columns, b: Side::Rows };
            return cuda.matmul(&product, dw, accumulate, dy, x, Epilogue::default(), ws);
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
