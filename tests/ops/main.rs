//! The computing parts: each op against its definition in f64, finite differences and mmdetection's numbers
//! (tests/cases, one file per op); the CPU's convolution kernels; whole training steps on every GPU of the build; the
//! simulated device; 16-bit training.

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
