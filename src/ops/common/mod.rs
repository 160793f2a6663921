//! What several ops share, and no op by itself: bias, padded batches, 16 bits on the CPU, sums in chunks, order of scores.

pub mod bias;
pub mod bias_correction;
pub(super) mod live;
pub(crate) mod multi_tensor;
pub(super) mod order;
pub(super) mod partial;
pub mod relu_gradient;
pub(crate) mod stochastic_rounding;
#[cfg(test)]
#[allow(dead_code)] // the integration tests use the rest
#[path = "../../../tests/support/numbers.rs"]
pub(crate) mod testing;
pub(super) mod wide;
