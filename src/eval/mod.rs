//! Module eval.
