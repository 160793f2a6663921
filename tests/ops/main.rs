//! What computes: each op against its definition in f64, finite differences and mmdetection's numbers (tests/cases, one
//! file an op), the CPU's convolution kernels, whole steps on every GPU of the build, the simulated device, and 16
//! bits.

#[path = "../cases/mod.rs"]
mod cases;
#[path = "../support/mod.rs"]
mod support;

mod cpu_conv;
#[cfg(any(feature = "sim", feature = "cuda-driver"))]
mod gpu;
mod precision;
#[cfg(feature = "sim")]
mod sim;
