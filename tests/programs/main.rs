//! The programs as a user runs them (train, evaluate, detect, convert, dataset), and the report that a run ends with.
//!
//! All tests of this binary share one finished run and one data set (`support::programs`): they read them and never
//! write to them.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod convert;
mod dataset;
mod end_to_end;
mod evaluate;
mod output;
mod report;
mod usage;
