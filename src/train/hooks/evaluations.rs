//! Evaluations on the validation split, every `eval_every_epochs` epochs.

use std::ops::ControlFlow;
use std::time::Instant;

use super::Hook;
use crate::error::Result;
use crate::train::context::{Run, StageRun};
use crate::train::evaluation::evaluate_val;
use crate::train::outcome::Ended;

pub(super) struct Evaluations;

impl Hook for Evaluations {
    /// A resumed run begins with the evaluation that had not ended.
    fn before_steps(&mut self, run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
        if run.meta.evaluation_due { evaluate(run, stage) } else { Ok(ControlFlow::Continue(())) }
    }

    fn uses_weights(&self, run: &Run<'_>, stage: &StageRun<'_>) -> bool {
        stage.evaluation_due(run)
    }

    fn after_step(&mut self, run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
        if self.uses_weights(run, stage) { evaluate(run, stage) } else { Ok(ControlFlow::Continue(())) }
    }
}

/// Evaluates; the time it takes does not count for the speed of training.
fn evaluate(run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
    let begun = Instant::now();
    let flow = evaluate_val(run, stage)?;
    run.clock.evaluated += begun.elapsed();
    Ok(flow)
}
