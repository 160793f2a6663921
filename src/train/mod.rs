//! Training: the recipe, its stages, the schedule, checkpoints, the run directory and the log.

pub mod recipe;
pub mod schedule;
