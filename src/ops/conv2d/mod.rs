//! 2-D convolution, NHWC, weights `[O,KH,KW,I]`.

pub mod cpu;
pub(crate) mod gather;
pub(crate) mod implicit;
mod pack;
pub(crate) mod weights;
