//! Module tape.
