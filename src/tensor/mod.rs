//! Tensors: shape, element type, storage; and the counter-based random numbers.

pub mod philox;
