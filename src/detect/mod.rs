//! Detection with a trained checkpoint: inference over whole data sets, test-time augmentation.
//!
//! Not for metrics ([`crate::eval`]) nor for drawing ([`crate::data::draw`]). Main types: [`infer::Detector`],
//! [`found::Detection`]. Read `infer.rs` next, then `tta.rs`.

pub mod found;
pub mod infer;
pub mod tta;
