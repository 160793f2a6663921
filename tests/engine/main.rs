//! The engine's training steps, and weights that come from and go to other programs.

#[path = "../support/mod.rs"]
mod support;

mod steps;
mod weights;
