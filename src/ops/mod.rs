//! Module ops.
