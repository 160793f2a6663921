//! The training loop: the stages of a recipe one after the other, and what happens around each step.
//!
//! Not for what a step computes ([`crate::engine`]), what is wanted ([`crate::recipe`]) or what stays on disk ([`crate::run`]).
//! Main function: [`trainer::train`].

mod evaluation;
pub mod finish;
pub mod initial_weights;
mod meter;
pub mod progress;
pub mod recorder;
pub mod trainer;
