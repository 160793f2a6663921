//! The training loop: the stages of a recipe one after the other, and what happens around each step.
//!
//! It is not for what a step computes ([`crate::engine`]), what is wanted ([`crate::recipe`]), what a stage takes
//! ([`crate::plan`]) or what stays on disk ([`crate::run`]). Main function: [`session::train`]; main types:
//! [`options::TrainOptions`], [`outcome::Outcome`], `context::Run`.
//!
//! Read `stage.rs` first: it has the loop on one screen. What happens around a step is a hook (`hooks`) with a file of
//! its own.

mod context;
mod evaluation;
pub mod finish;
mod hooks;
pub mod initial_weights;
mod measurements;
pub mod options;
pub mod outcome;
mod passes;
pub mod progress;
pub mod recorder;
pub mod session;
mod stage;
