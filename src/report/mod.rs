//! What is shown of a run: `report.html` and the files that TensorBoard reads.
//!
//! Reads only the run directory ([`log_reader`](crate::run::log_reader) parses `log.jsonl`); training and evaluation belong to other modules. Main
//! function: [`write_report`]. Read `html.rs` next: it puts the page together from `tables.rs` and `sections.rs`.

pub mod compare;
mod curves;
mod html;
pub mod pictures;
mod results;
mod sections;
mod tables;
pub mod tensorboard;
mod text;

pub use html::write_report;
