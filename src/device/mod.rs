//! What is close to the machine: SIMD vectors, the GEMM micro-kernel, matrix views that threads share, the `gemm` crate.
//!
//! The only module (with the CUDA glue) that contains `unsafe`: everything public here is safe to call.

pub mod gemm;
pub mod microkernel;
pub mod simd;
pub mod view;
