//! Helpers shared by the integration tests: `mod support;` in a test file.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

pub mod annotations;
pub mod fixtures;
pub mod programs;
pub mod small;
pub mod tensors;
