//! The repository's own rules: imports go down the rooms, every op has all of its parts, and the fixtures are what
//! their README says.

#[path = "../support/mod.rs"]
mod support;

mod fixtures;
mod registry;
mod rooms;
