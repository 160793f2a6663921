//! 2-D convolution, NHWC, weights `[O,KH,KW,I]`.

pub mod cpu;
pub(crate) mod gather;
pub(crate) mod implicit;
mod pack;
mod transform;
pub(crate) mod weights;
mod winograd;
mod winograd_weights;
