//! Training: the recipe, its stages, the schedule, checkpoints, the run directory and the log.

pub mod checkpoint;
pub mod engine;
pub mod recipe;
pub mod schedule;
