//! What a run leaves on disk: its folder, checkpoints, the events and their log, conversion of weights.
//!
//! Not for training ([`crate::train`]) nor for showing a run ([`crate::report`]). Main types: [`dir::RunDir`],
//! [`checkpoint::Checkpoint`], [`event::Event`]. Read `dir.rs` first: it names every file.

pub mod checkpoint;
pub mod convert;
pub mod dir;
pub mod event;
pub mod log;
