//! Ends a run between two steps: on Ctrl-C, or after `--stop-after` steps.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use super::Hook;
use crate::error::Result;
use crate::train::context::{Run, StageRun};
use crate::train::outcome::Ended;

pub(super) struct Interrupts;

impl Hook for Interrupts {
    fn before_step(&mut self, run: &mut Run<'_>, _stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
        if run.options.interrupt.load(Ordering::Relaxed) {
            return Ok(ControlFlow::Break(Ended::Interrupted));
        }
        if run.options.stop_after.is_some_and(|steps| run.meta.global_step >= steps) {
            return Ok(ControlFlow::Break(Ended::Stopped));
        }
        Ok(ControlFlow::Continue(()))
    }
}
