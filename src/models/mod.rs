//! Models: what a recipe's `[model]` table describes, and the networks built from it.

pub mod config;
