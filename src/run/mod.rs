//! The files of a run: its folder, checkpoints, the events and their log, conversion of weights.
//!
//! Not for training ([`crate::train`]) nor for showing a run ([`crate::report`]). Main types: [`dir::RunDir`],
//! [`checkpoint::Checkpoint`], [`event::Event`]. Read `dir.rs` next: it names every file.

pub mod checkpoint;
pub mod convert;
pub mod dir;
pub mod event;
pub mod log;
pub mod log_reader;
