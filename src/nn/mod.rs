//! Layers: plain structs that own named parameters and call one op in `forward`. Parameters have the names of
//! mmdetection's state dict; convolution weights are laid out as `[O,KH,KW,I]`.
//!
//! The arithmetic and the gradients are in [`crate::ops`], the networks made of these layers in [`crate::models`]. Main
//! types: [`ParamStore`], which owns all parameters of a model, and [`Builder`], which makes them. Read `store.rs`
//! first, then `layers.rs`.

mod init;
mod layers;
mod store;

pub use init::Init;
pub use layers::{BatchNorm, Conv2d, ConvSpec, Deconv2x2, LayerNorm, Linear, NormMode, SelectLinear};
pub use store::{Builder, ParamStore};
