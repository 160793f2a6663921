//! A line of the log every second of training, and before each evaluation: mean losses, gradient norm, speed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use super::Hook;
use crate::error::Result;
use crate::run::event::{self, Event};
use crate::train::context::{Clock, Run, StageRun};
use crate::train::measurements::Measured;
use crate::train::outcome::Ended;

/// Least time between two lines of the log.
const LOG_EVERY: Duration = Duration::from_secs(1);

pub(super) struct LogLines {
    since: Since,
    /// Norm of the gradient of the last step that was taken.
    grad_norm: f32,
    /// Steps that f16 skipped, in this stage of this process.
    skipped: u64,
}

/// What was measured since the last line.
struct Since {
    training: Duration,
    waited: Duration,
    images: usize,
    steps: usize,
    /// Sum of each loss over the steps.
    losses: Vec<f64>,
}

impl Since {
    fn now(clock: &Clock) -> Since {
        Since { training: clock.training(), waited: clock.waited, images: 0, steps: 0, losses: Vec::new() }
    }
}

impl LogLines {
    pub(super) fn new(run: &Run<'_>) -> LogLines {
        LogLines { since: Since::now(&run.clock), grad_norm: 0.0, skipped: 0 }
    }

    /// The line, which also begins the next one.
    fn line(&mut self, run: &Run<'_>, stage: &StageRun<'_>) -> Event {
        let since = std::mem::replace(&mut self.since, Since::now(&run.clock));
        let seconds = (run.clock.training() - since.training).as_secs_f64().max(1e-9);
        let means = since.losses.iter().map(|sum| sum / since.steps.max(1) as f64);
        let names = run.planner.loss_names().iter().map(|name| name.to_string());
        let mut losses: BTreeMap<String, f64> = names.zip(means.clone()).collect();
        losses.insert("loss".into(), means.sum());
        Event::Train(event::Train {
            stage: stage.config.name.clone(),
            stage_index: stage.index,
            step: run.meta.step,
            global_step: run.meta.global_step,
            epoch: stage.context.schedule.epoch(run.meta.step),
            lr: stage.context.schedule.lr(run.meta.step - 1),
            losses,
            grad_norm: f64::from(self.grad_norm),
            images_per_s: since.images as f64 / seconds,
            data_wait: (run.clock.waited - since.waited).as_secs_f64() / seconds,
            time_s: run.clock.now(),
            memory_bytes: stage.plans.persistent_bytes + stage.plans.arena_bytes(),
            skipped_steps: self.skipped,
        })
    }
}

impl Hook for LogLines {
    fn measured(&mut self, measured: &Measured) {
        self.since.images += measured.images;
        let Some(losses) = &measured.losses else {
            self.skipped += 1;
            return;
        };
        self.grad_norm = measured.grad_norm;
        self.since.steps += 1;
        self.since.losses.resize(losses.len(), 0.0);
        self.since.losses.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss);
    }

    fn after_step(&mut self, run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
        let due = stage.is_at_end(run)
            || stage.evaluation_due(run)
            || run.clock.training() - self.since.training >= LOG_EVERY;
        if due && self.since.steps > 0 {
            let line = self.line(run, stage);
            run.observer.event(&line)?;
        }
        Ok(ControlFlow::Continue(()))
    }
}
