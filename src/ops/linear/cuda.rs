//! Fully connected layers on a GPU. NVIDIA GPUs use cuBLASLt with the bias in its epilogue, the simulated device uses
//! the CPU's products, and kernels/bias.cu does the rest.

use super::cpu::LinearShape;
use crate::device::Target;
use crate::device::gpu::Pass;
use crate::error::Result;
use crate::ops::common::bias;
use crate::tensor::Tensor;

/// The workspace that cuBLASLt recommends on Hopper (32 MiB), which is enough on older devices.
const CUBLASLT_WORKSPACE_BYTES: usize = (32 << 20) + 256; // and room to begin at a multiple of 256

/// Elements (f32) of the workspace of one pass; `cpu` returns those of the CPU's pass.
pub(in crate::ops) fn workspace(target: Target, cpu: impl FnOnce() -> usize) -> usize {
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
    // cuBLASLt adds a bias of the output's type only: in 16 bits it is added behind the product.
    let fused = b.filter(|b| b.dtype() == y.dtype());
    let added = product(Pass::Forward, y, false, x, w, fused, ws, s)?;
    // The ReLU is never in cuBLASLt's epilogue: it may turn NaN into 0.
    bias::forward(y, b.filter(|_| !added), relu)
}

/// One of the three products, `out (+)= pass(a, b)`, by whom this build has: NVIDIA's library, or the simulated
/// device's host. True if the bias has been added, too.
pub(in crate::ops) fn product(
    pass: Pass,
    out: &mut Tensor,
    add: bool,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    ws: &mut Tensor,
    s: &LinearShape,
) -> Result<bool> {
    let inner = match pass {
        Pass::Forward => s.k,
        Pass::Data => s.n,
        Pass::Weights => s.m,
    };
    if out.numel() == 0 || (inner == 0 && add) {
        return Ok(false);
    }
    if inner == 0 {
        out.zero()?; // a sum of nothing
        return Ok(false);
    }
    let device = out.device().clone();
    #[cfg(feature = "cuda-driver")]
    if let Some(cuda) = device.gpu().cuda_driver() {
        use crate::device::gpu::Operand;
        use crate::device::gpu::cuda::{Matmul, Side};
        let product = match pass {
            Pass::Forward => Matmul { m: s.m, n: s.n, k: s.k, a: Side::Rows, b: Side::Columns },
            Pass::Data => Matmul { m: s.m, n: s.k, k: s.n, a: Side::Rows, b: Side::Rows },
            // dw = dy^T x: cuBLASLt's first factor is dy.
            Pass::Weights => Matmul { m: s.n, n: s.k, k: s.m, a: Side::Columns, b: Side::Rows },
        };
        let (a, b) = if pass == Pass::Weights { (b, a) } else { (a, b) };
        cuda.blas().matmul(&product, out, add, a, b, bias.map(|b| b as &dyn Operand), ws)?;
        return Ok(bias.is_some());
    }
    #[cfg(feature = "sim")]
    if let Some(sim) = device.gpu().sim() {
        let s = *s;
        sim.product(out, a, b, ws, move |out, a, b, ws| match pass {
            Pass::Forward => super::cpu::forward(out, a, b, None, false, ws, &s),
            Pass::Data => super::cpu::backward_data(out, a, b, ws, &s),
            Pass::Weights => super::cpu::backward_weights(out, add, a, b, ws, &s),
        });
        return Ok(false);
    }
    unreachable!("linear: {pass:?} {add} {a:?} {b:?} {bias:?} {ws:?} {s:?} on {device:?}, a GPU without a driver")
}
