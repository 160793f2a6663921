//! Recipes: how they are read, which steps and how much memory follow from them, and how a stage is fitted into less.

#[path = "../support/mod.rs"]
mod support;

mod budget;
mod memory;
mod plan;
mod reading;
