//! Layers: parameters with names, initial values and the op they feed. Each layer is a plain struct with a `forward`.
//!
//! Names and layouts: those of mmdetection's state dict, weights in `[O,KH,KW,I]`.

mod init;
mod layers;
mod store;

pub use init::Init;
pub use layers::{BatchNorm, Conv2d, ConvSpec, Deconv2x2, LayerNorm, Linear, NormMode, SelectLinear};
pub use store::{Builder, ParamStore};
