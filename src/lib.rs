//! upres trains object detectors from scratch by direct detection pre-training (arXiv 2106.03112).
//!
//! Each module is a room, and imports go one way, from the programs (`bin`) and `train` down to `tensor`, `device` and
//! `cpu`. `tests/house/rooms.rs` has the whole list and enforces it; docs/architecture.md has a picture and says what
//! each room is for. Start reading at docs/architecture.md.

pub mod cpu;
pub mod data;
pub mod detect;
pub mod detection;
pub mod device;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod eval;
pub mod format;
pub mod models;
pub mod nn;
pub mod ops;
pub mod output;
pub mod philox;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod run;
pub mod tape;
pub mod tensor;
pub mod train;
pub mod weights;

// Files that unit tests share with the integration tests name the library from outside.
#[cfg(test)]
extern crate self as upres;

pub use error::{Error, Result};
