//! Training: the recipe, its stages, the schedule, checkpoints, the run directory and the log.

mod atomic;
pub mod checkpoint;
pub mod convert;
pub mod data;
pub mod engine;
mod evaluation;
pub mod event;
pub mod finish;
pub mod infer;
pub mod log;
mod meter;
pub mod plan_report;
pub mod plans;
pub mod precision;
pub mod progress;
pub mod recipe;
mod recipe_check;
pub mod recipe_docs;
pub mod recipe_keys;
pub mod recipe_read;
mod recipe_schema;
pub mod recorder;
mod recordings;
pub mod run_dir;
pub mod schedule;
pub mod trainer;
pub mod tta;
