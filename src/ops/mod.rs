//! Ops: one folder an op, `mod.rs` (doc, checks, output shape, dispatch, record), `cpu.rs` (kernels), listed in [`OPS`].
//!
//! An op allocates its outputs and workspaces in `mod.rs`, then dispatches; so the plan device, which computes nothing,
//! sees the same allocations as the CPU. docs/adding_an_op.md walks through one.

pub mod elementwise;
pub mod match_boxes;
pub mod max_pool;
pub mod nms;
pub(crate) mod order;
pub mod roi_align;
#[cfg(test)]
pub(crate) mod testing;

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
pub const OPS: &[OpInfo] = &[match_boxes::INFO, max_pool::INFO, nms::INFO, roi_align::INFO];
