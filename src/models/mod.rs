//! Detectors, each readable like its paper's figure.

pub mod config;

pub use config::ModelConfig;
