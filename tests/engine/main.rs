//! The engine's training steps, and the exchange of weights with other programs.

#[path = "../support/mod.rs"]
mod support;

mod steps;
mod weight_files;
mod weights;
