//! What every part of a run works with: the recipe, the data, the engine, the counters and the clock.
//!
//! Main types: [`Run`], for the whole run, [`StageRun`], for one of its stages, and [`Clock`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::options::TrainOptions;
use crate::engine::Engine;
use crate::engine::feed::RunData;
use crate::error::{Error, Result};
use crate::eval::{Evaluator, MaskMetrics};
use crate::output::link_atomic;
use crate::plan::{StageContext, StagePlans};
use crate::recipe::{Recipe, StageConfig};
use crate::run::checkpoint::{Checkpoint, Meta, save};
use crate::run::event::{self, Event, Observer};

/// A run under way.
pub(super) struct Run<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) data: &'a RunData,
    pub(super) options: &'a TrainOptions,
    pub(super) observer: &'a mut dyn Observer,
    /// The model where it is trained.
    pub(super) engine: Engine,
    /// The same model on the plan device.
    pub(super) planner: Engine,
    /// Counters of the run, as the next checkpoint will hold them.
    pub(super) meta: Meta,
    pub(super) clock: Clock,
    /// Evaluators by split: "val", "test".
    pub(super) evaluators: BTreeMap<&'static str, Evaluator>,
}

impl<'a> Run<'a> {
    /// Puts a run together; `meta` has its counters.
    ///
    /// Errors: `Data` if the recipe expects masks to be measured and a split has none.
    pub(super) fn new(
        recipe: &'a Recipe,
        data: &'a RunData,
        options: &'a TrainOptions,
        observer: &'a mut dyn Observer,
        engine: Engine,
        planner: Engine,
        meta: Meta,
    ) -> Result<Run<'a>> {
        let evaluators = evaluators(recipe, data, observer)?;
        let clock = Clock::after(meta.time_s);
        Ok(Run { recipe, data, options, observer, engine, planner, meta, clock, evaluators })
    }

    /// Tells that the run begins, or goes on from `resumed`, and what of the data is not used.
    pub(super) fn announce(&mut self, resumed: Option<&Checkpoint>) -> Result<()> {
        let left_out = self.data.notes();
        left_out.iter().for_each(|note| self.observer.note(note));
        self.observer.event(&Event::Start(event::Start {
            version: env!("CARGO_PKG_VERSION").into(),
            recipe: self.recipe.name.clone(),
            seed: self.recipe.seed,
            device: format!("{:?}", self.engine.device()),
            recipe_crc32c: self.recipe.crc32c(),
            threads: rayon::current_num_threads(),
            classes: self.data.train.dataset().class_names(),
            parameters: self.engine.store.all().iter().map(|p| p.numel()).sum(),
            resumed_at: resumed.map(|c| c.meta.global_step),
            left_out,
        }))
    }

    /// Writes the checkpoint `NAME.safetensors`.
    ///
    /// Errors: `NonFinite` if a weight, or a gradient that must be finite, is not.
    pub(super) fn save(&mut self, name: &str) -> Result<()> {
        if let Some(tensor) = self.engine.first_spoilt()? {
            return Err(Error::non_finite(self.meta.global_step, tensor, f32::NAN));
        }
        self.meta.time_s = self.clock.now();
        save(&self.checkpoint(name), &self.meta, &self.engine.state())?;
        self.tell_checkpoint(name)
    }

    /// Gives the checkpoint `from` a second name, without a second copy of its bytes.
    pub(super) fn link(&mut self, from: &str, name: &str) -> Result<()> {
        link_atomic(&self.checkpoint(from), &self.checkpoint(name))?;
        self.tell_checkpoint(name)
    }

    fn checkpoint(&self, name: &str) -> std::path::PathBuf {
        self.options.checkpoints.join(format!("{name}.safetensors"))
    }

    fn tell_checkpoint(&mut self, name: &str) -> Result<()> {
        self.observer.event(&Event::Checkpoint(event::CheckpointWritten {
            path: self.checkpoint(name).display().to_string(),
            global_step: self.meta.global_step,
        }))
    }
}

/// What the parts of a stage work with, beside [`Run`]. It does not change while the stage runs.
pub(super) struct StageRun<'a> {
    pub(super) index: usize,
    pub(super) config: &'a StageConfig,
    pub(super) context: StageContext,
    pub(super) plans: StagePlans,
    /// Whether the run ends with this stage.
    pub(super) is_last: bool,
}

impl StageRun<'_> {
    /// Optimizer steps of the stage.
    pub(super) fn steps(&self) -> u64 {
        self.context.schedule.total_steps()
    }

    /// Whether every step has been taken.
    pub(super) fn is_at_end(&self, run: &Run<'_>) -> bool {
        run.meta.step == self.steps()
    }

    /// Whether an evaluation on the validation split comes after the steps taken so far. The final evaluation takes the
    /// place of the last one.
    pub(super) fn evaluation_due(&self, run: &Run<'_>) -> bool {
        let final_one = self.is_at_end(run) && self.is_last && run.data.test.is_none();
        self.context.schedule.eval_due(run.meta.step, self.config.eval_every_epochs) && !final_one
    }
}

/// An evaluator for each split, with masks where the detector has them and the split can measure them.
fn evaluators(
    recipe: &Recipe,
    data: &RunData,
    observer: &mut dyn Observer,
) -> Result<BTreeMap<&'static str, Evaluator>> {
    let mut evaluators = BTreeMap::new();
    for (split, store) in [("val", &data.val), ("test", &data.test)] {
        let Some(store) = store else { continue };
        let wanted = match (recipe.model.mask_size().is_some(), recipe.expects_masks()) {
            (false, _) => MaskMetrics::Off,
            (true, false) => MaskMetrics::IfUsable,
            (true, true) => MaskMetrics::Required,
        };
        let (evaluator, without_masks) = Evaluator::open(store.dataset(), wanted)?;
        without_masks.into_iter().for_each(|note| observer.note(&format!("{split}: {note}")));
        evaluators.insert(split, evaluator);
    }
    Ok(evaluators)
}

/// Time of the whole run.
pub(super) struct Clock {
    /// Seconds before the run was resumed.
    before: f64,
    /// When this process began to train.
    start: Instant,
    /// Time that training waited for data.
    pub(super) waited: Duration,
    /// Time spent in evaluations, which do not count for the speed of training.
    pub(super) evaluated: Duration,
}

impl Clock {
    fn after(seconds: f64) -> Clock {
        Clock { before: seconds, start: Instant::now(), waited: Duration::ZERO, evaluated: Duration::ZERO }
    }

    /// Seconds of the run so far, evaluations included.
    pub(super) fn now(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    /// Time of this process without evaluations.
    pub(super) fn training(&self) -> Duration {
        self.start.elapsed().saturating_sub(self.evaluated)
    }

    /// Share of this process's time that training waited for data.
    pub(super) fn waited_share(&self) -> f64 {
        self.waited.as_secs_f64() / self.start.elapsed().as_secs_f64().max(1e-9)
    }
}
