//! Module train.
