//! The passes of a step: each takes a micro-batch from the loader and runs forward, losses and backward. Main type:
//! [`Passes`].

use super::context::{Run, StageRun};
use super::measurements::{Losses, check_finite};
use crate::data::{Batch, Loader};
use crate::engine::feed::{host_batch, train_pipeline};
use crate::error::Result;
use crate::models::Sampling;
use crate::plan::loader_options;
use crate::tensor::DType;

/// The source of a stage's training batches, and how they are run.
pub(super) struct Passes {
    loader: Loader,
    /// Passes of one optimizer step.
    count: u64,
    /// On a GPU the losses of a step are read when the next step is under way, so that the device never waits for the
    /// host.
    reads_late: bool,
    /// Whether a loss may be infinite or NaN: f16 may overflow, and the optimizer then skips the step.
    may_overflow: bool,
}

impl Passes {
    /// Opens the loader at the step that the run has reached.
    pub(super) fn new(run: &Run<'_>, stage: &StageRun<'_>) -> Result<Passes> {
        let count = stage.config.accumulate() as u64;
        let (first, end) = (run.meta.step * count, stage.steps() * count);
        let options = loader_options(run.recipe, run.data, stage.index, first, end);
        Ok(Passes {
            loader: Loader::new(run.data.train.clone(), train_pipeline(stage.config), options)?,
            count,
            reads_late: run.engine.device().runs_kernels(),
            may_overflow: stage.context.setup.dtype == DType::F16,
        })
    }

    /// Runs the passes of one optimizer step. Returns the losses of each.
    pub(super) fn run_step(&mut self, run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<Vec<Losses>> {
        (0..self.count).map(|pass| self.run_pass(run, stage, pass)).collect()
    }

    fn run_pass(&mut self, run: &mut Run<'_>, stage: &StageRun<'_>, pass: u64) -> Result<Losses> {
        let batch = self.next_batch(run, pass)?;
        let inputs = run.engine.train_inputs(batch.bucket);
        inputs.load(&host_batch(&batch, &[], &[]))?;
        let first_image = (pass * stage.config.micro_batch as u64) as u32;
        inputs.set_key(run.recipe.seed, stage.index as u8, run.meta.step, first_image)?;
        let (plan, weight) = (&stage.plans.train[batch.bucket], 1.0 / self.count as f32);
        run.engine.train_pass(Some(plan), batch.bucket, weight, pass == 0, Sampling::Random)?;
        self.loader.recycle(batch);
        if self.reads_late {
            return Ok(Box::new(run.engine.losses_later()?));
        }
        let losses = run.engine.losses()?;
        if !self.may_overflow {
            check_finite(run, run.meta.global_step, Some(&run.engine), &losses)?;
        }
        Ok(Box::new(move || Ok(losses)))
    }

    /// The next batch. Before the error of a bad picture ends the run, a checkpoint is written: no step is lost.
    fn next_batch(&mut self, run: &mut Run<'_>, pass: u64) -> Result<Batch> {
        let before = self.loader.waited();
        let batch = match self.loader.next() {
            Err(error) if pass == 0 && run.meta.global_step > 0 => {
                run.save("last")?;
                return Err(error);
            }
            other => other?,
        };
        run.clock.waited += self.loader.waited() - before;
        Ok(batch)
    }
}
