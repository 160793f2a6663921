//! Ops: one folder an op, `mod.rs` (doc, checks, output shape, dispatch, record), `cpu.rs` (kernels), listed in [`OPS`].
//!
//! An op allocates its outputs and workspaces in `mod.rs`, then dispatches; so the plan device, which computes nothing,
//! sees the same allocations as the CPU. docs/adding_an_op.md walks through one.

pub mod conv2d;
pub mod elementwise;
pub mod linear;
pub mod max_pool;

use crate::error::Result;
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// What the registry knows of an op; tests/registry.rs checks each entry against the source tree.
#[derive(Clone, Copy, Debug)]
pub struct OpInfo {
    /// Name of the folder, of the function and of the range in profiles.
    pub name: &'static str,
    /// Whether gradients flow through it.
    pub gradient: Gradient,
}

/// Whether gradients flow through an op.
#[derive(Clone, Copy, Debug)]
pub enum Gradient {
    /// It has a rule.
    Yes,
    /// It has none, for this reason.
    No(&'static str),
}

/// All ops.
pub const OPS: &[OpInfo] = &[conv2d::INFO, linear::INFO, max_pool::INFO];

/// `dy` where `y > 0`, else 0; in place if nobody else holds `dy`. Without `y` there was no ReLU.
fn relu_gradient(mut dy: Tensor, y: Option<Tensor>) -> Result<Tensor> {
    let Some(y) = y else { return Ok(dy) };
    if !dy.is_unique() {
        let mut own = Tensor::empty(dy.device(), dy.shape(), DType::F32)?;
        elementwise::copy(&mut own, &dy)?;
        dy = own;
    }
    on_device!(y.device(), cpu => conv2d::cpu::relu_mask(dy.f32s_mut(), y.f32s()));
    Ok(dy)
}
