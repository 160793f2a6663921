//! What the steps measure: losses and the norm of the gradient, read late on a GPU, and checked.
//!
//! Main type: [`Measurements`]. Hooks hear of each step as a [`Measured`].

use super::context::{Run, StageRun};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Losses of a pass, possibly still on their way from a GPU.
pub(super) type Losses = Box<dyn FnOnce() -> Result<Vec<f32>>>;

/// Number of steps in a row that f16 may overflow in. By then the largest loss scale, 2^24, has fallen to 1 and cannot
/// be to blame.
const MOST_OVERFLOWS: u32 = 24;

/// A step whose numbers were not read yet.
struct Pending {
    /// Number of the step in the run, from 0.
    global_step: u64,
    losses: Vec<Losses>,
    norm: Box<dyn FnOnce() -> Result<f32>>,
}

/// What one optimizer step has measured.
pub(super) struct Measured {
    /// Images of the step.
    pub(super) images: usize,
    /// Losses in the order of the engine's names, averaged over the passes; `None` if f16 overflowed and the optimizer
    /// skipped the step.
    pub(super) losses: Option<Vec<f64>>,
    /// Norm of the gradient before clipping; not finite if the step was skipped.
    pub(super) grad_norm: f32,
}

/// Numbers of the steps that are under way.
pub(super) struct Measurements {
    /// One step at the most on the CPU, two on a GPU.
    pending: Vec<Pending>,
    /// Steps that may be under way before the oldest one is read.
    most_pending: usize,
    /// Whether a step may be skipped because f16 overflowed.
    may_overflow: bool,
    overflows_in_a_row: u32,
}

impl Measurements {
    pub(super) fn new(run: &Run<'_>, stage: &StageRun<'_>) -> Measurements {
        Measurements {
            pending: Vec::new(),
            most_pending: usize::from(run.engine.device().runs_kernels()),
            may_overflow: stage.context.setup.dtype == DType::F16,
            overflows_in_a_row: 0,
        }
    }

    /// Takes the numbers of the step that the engine has just been given.
    pub(super) fn push(&mut self, losses: Vec<Losses>, run: &Run<'_>) -> Result<()> {
        let norm = Box::new(run.engine.grad_norm_later()?);
        self.pending.push(Pending { global_step: run.meta.global_step, losses, norm });
        Ok(())
    }

    /// Reads the steps that nobody needs to wait for: on the CPU all, on a GPU all but the newest.
    pub(super) fn read_due(&mut self, run: &Run<'_>, stage: &StageRun<'_>) -> Result<Vec<Measured>> {
        let due = self.pending.len().saturating_sub(self.most_pending);
        let steps: Vec<Pending> = self.pending.drain(..due).collect();
        steps.into_iter().map(|step| self.read(step, run, stage)).collect()
    }

    /// Reads every step, waiting for the device.
    pub(super) fn read_all(&mut self, run: &Run<'_>, stage: &StageRun<'_>) -> Result<Vec<Measured>> {
        let steps = std::mem::take(&mut self.pending);
        steps.into_iter().map(|step| self.read(step, run, stage)).collect()
    }

    fn read(&mut self, step: Pending, run: &Run<'_>, stage: &StageRun<'_>) -> Result<Measured> {
        let passes = step.losses.len() as f64;
        let mut sums = vec![0.0; run.planner.loss_names().len()];
        for losses in step.losses {
            let losses = losses()?;
            if !self.may_overflow {
                check_finite(run, step.global_step, None, &losses)?; // the weights are a step further by now
            }
            sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += f64::from(loss) / passes);
        }
        let grad_norm = (step.norm)()?;
        let tolerated = self.tolerates(grad_norm);
        // A loss that is not finite beside a gradient that is: no skipped step of f16, so a real error.
        if grad_norm.is_finite() || !tolerated {
            check_finite(run, step.global_step, None, &sums.iter().map(|s| *s as f32).collect::<Vec<_>>())?;
        }
        if !tolerated {
            return Err(Error::non_finite(step.global_step, "norm of the gradient".into(), grad_norm));
        }
        let losses = grad_norm.is_finite().then_some(sums);
        Ok(Measured { images: stage.config.images_per_step, losses, grad_norm })
    }

    /// Counts a step by the norm of its gradient. False if the run must end.
    fn tolerates(&mut self, grad_norm: f32) -> bool {
        let overflowed = !grad_norm.is_finite();
        self.overflows_in_a_row = if overflowed { self.overflows_in_a_row + 1 } else { 0 };
        !overflowed || (self.may_overflow && self.overflows_in_a_row <= MOST_OVERFLOWS)
    }
}

/// Checks the losses of a step. `engine`, if its weights are still those of the step, is searched for the tensor to
/// blame.
///
/// Errors: `NonFinite` with the first loss that is not finite, and the first parameter or gradient that is not.
pub(super) fn check_finite(run: &Run<'_>, step: u64, engine: Option<&Engine>, losses: &[f32]) -> Result<()> {
    let Some(i) = losses.iter().position(|v| !v.is_finite()) else { return Ok(()) };
    let mut tensor = format!("loss {}", run.planner.loss_names()[i]);
    if let Some(name) = engine.map_or(Ok(None), Engine::first_non_finite)? {
        tensor = format!("{tensor} (first non-finite: {name})");
    }
    Err(Error::non_finite(step, tensor, losses[i]))
}
