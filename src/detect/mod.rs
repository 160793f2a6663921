//! What a checkpoint finds in pictures: inference over whole data sets, test-time augmentation.
//!
//! Not for metrics ([`crate::eval`]) nor for drawing ([`crate::data::draw`]). Main types: [`infer::Detector`],
//! [`found::Detection`]. Read `infer.rs` first.

pub mod found;
pub mod infer;
pub mod tta;
