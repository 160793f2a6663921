//! Module data.
