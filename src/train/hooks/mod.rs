//! What happens around the steps of a stage: one file and one [`Hook`] each.
//!
//! To add one (early stopping, a tracker, ranks that agree on something), write its file and add it to [`hooks`]; the
//! loop in `train/stage.rs` stays as it is.

mod checkpoints;
mod evaluations;
mod interrupts;
mod log_lines;

use std::ops::ControlFlow;

use super::context::{Run, StageRun};
use super::measurements::Measured;
use super::outcome::Ended;
use crate::error::Result;

/// A part of the loop. Every method has a default that does nothing. `Break` ends the stage.
pub(super) trait Hook {
    /// Before the first step of the stage, or of this process.
    fn before_steps(&mut self, _run: &mut Run<'_>, _stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
        Ok(ControlFlow::Continue(()))
    }
    /// Before a step.
    fn before_step(&mut self, _run: &mut Run<'_>, _stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
        Ok(ControlFlow::Continue(()))
    }
    /// The numbers of a step are there: on a GPU one step late, but never later than [`Hook::after_step`] where a hook
    /// [uses the weights](Hook::uses_weights).
    fn measured(&mut self, _measured: &Measured) {}
    /// Whether [`Hook::after_step`] will save or evaluate the weights: the losses behind them are read and checked
    /// first.
    fn uses_weights(&self, _run: &Run<'_>, _stage: &StageRun<'_>) -> bool {
        false
    }
    /// After a step; `run.meta.step` counts it.
    fn after_step(&mut self, _run: &mut Run<'_>, _stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
        Ok(ControlFlow::Continue(()))
    }
}

/// The hooks of a stage, in the order in which they are called.
pub(super) fn hooks(run: &Run<'_>) -> Vec<Box<dyn Hook>> {
    vec![
        Box::new(interrupts::Interrupts),
        Box::new(log_lines::LogLines::new(run)),
        Box::new(evaluations::Evaluations),
        Box::new(checkpoints::Checkpoints),
    ]
}
