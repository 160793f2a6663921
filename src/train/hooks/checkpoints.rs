//! Checkpoints every `checkpoint_every_steps` steps. Evaluations and the end of a stage write theirs themselves.

use std::ops::ControlFlow;

use super::Hook;
use crate::error::Result;
use crate::train::context::{Run, StageRun};
use crate::train::outcome::Ended;

pub(super) struct Checkpoints;

impl Hook for Checkpoints {
    fn uses_weights(&self, run: &Run<'_>, stage: &StageRun<'_>) -> bool {
        let every = stage.config.checkpoint_every_steps;
        every > 0 && run.meta.step.is_multiple_of(every) && !stage.is_at_end(run)
    }

    fn after_step(&mut self, run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
        if self.uses_weights(run, stage) {
            run.save("last")?;
        }
        Ok(ControlFlow::Continue(()))
    }
}
