//! What a run shows: the lines of `log.jsonl` ([`log`]), its curves ([`curves`]), runs beside each other ([`compare`]),
//! detection examples ([`pictures`]) and the page that holds all of it ([`html`]).

pub mod compare;
pub mod curves;
pub mod html;
pub mod pictures;
pub mod results;
mod sections;
pub mod tensorboard;
mod text;

pub use html::write_report;
