//! Module models.
