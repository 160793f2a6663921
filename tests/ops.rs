//! Ops against naive f64 references, finite differences and mmdetection's numbers; tests/cases has one file an op.

mod cases;
mod support;
