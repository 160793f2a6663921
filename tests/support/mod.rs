//! Helpers that the test binaries share: `#[path = "../support/mod.rs"] mod support;` in each `main.rs`.

// Each binary uses a part of this.
#![allow(dead_code)]

pub mod annotations;
pub mod fixtures;
pub mod numbers;
pub mod programs;
pub mod small;
pub mod tensors;
