//! The length of all gradients together, and the factor that clips it.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::device::Device;
use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "grad_norm", gradient: Gradient::No("it measures gradients after the backward pass") };

/// `norm = sqrt(Σ g²)` over all elements of all gradients.
///
/// Shapes: grads any, f32; norm `[1]` f32.
/// Saves: nothing.
/// Gradient: none: it comes after the backward pass.
/// Cost: reads every gradient once; memory-bound.
/// Errors: `Dtype`, naming the place in the list.
/// Reference: torch.nn.utils.clip_grad_norm_, norm_type 2.
pub fn grad_norm(device: &Device, grads: &[&Tensor]) -> Result<Tensor> {
    let _op = device.enter("grad_norm");
    for (i, g) in grads.iter().enumerate() {
        g.expect_dtype(&format!("grad_norm: gradient {i}"), DType::F32)?;
    }
    let chunks = if device.runs_kernels() { cuda::chunks } else { cpu::chunks };
    // Eight bytes a chunk: on the CPU a pair of f32, on a GPU one f64.
    let mut partial = Tensor::empty(device, &[grads.iter().map(|g| chunks(g.numel())).sum(), 2], DType::F32)?;
    let mut norm = Tensor::empty(device, &[1], DType::F32)?;
    on_device!(
        device,
        cpu => {
            let mut rest = partial.f32s_mut();
            for g in grads {
                let (p, tail) = rest.split_at_mut(2 * chunks(g.numel()));
                cpu::chunk_norms(p, g.f32s());
                rest = tail;
            }
            norm.f32s_mut()[0] = cpu::total(partial.f32s());
        },
        cuda => cuda::norm(&mut norm, &mut partial, grads),
    );
    Ok(norm)
}
