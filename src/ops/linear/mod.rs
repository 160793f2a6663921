//! Fully connected layer `y = x w^T + b`.

pub mod cpu;
