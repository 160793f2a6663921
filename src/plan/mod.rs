//! Everything that follows from a recipe and its data before the first step: shapes, schedules, memory plans.
//!
//! Not for executing steps ([`crate::train`]) nor for tracing a single one ([`crate::engine`]). Main types:
//! [`Planner`], [`StageContext`], [`StagePlans`]. Read `budget/mod.rs` next (fits stages into a number of bytes), then
//! `report/mod.rs` (the numbers of `train --plan`) and `rates.rs` (measured speeds of earlier runs).

pub mod budget;
pub mod rates;
pub mod report;

use std::path::Path;
use std::rc::Rc;

use crate::data::loader::plan_batches;
use crate::data::{ImageStore, LoaderOptions, Shape};
use crate::device::{Device, StepPlan, Target};
use crate::engine::feed::{RunData, eval_pipeline, pixel_stats, train_pipeline};
use crate::engine::memory::PersistentBytes;
use crate::engine::{Engine, StageSetup};
use crate::error::Result;
use crate::models::Sampling;
use crate::recipe::schedule::Schedule;
use crate::recipe::{Recipe, StageConfig};
use crate::tape::Role;

/// The memory plans of a stage.
pub struct StagePlans {
    /// One for each training bucket.
    pub train: Vec<Rc<StepPlan>>,
    /// One for each evaluation bucket.
    pub eval: Vec<Rc<StepPlan>>,
    /// The plan of the optimizer's step.
    pub update: Rc<StepPlan>,
    /// Bytes of parameters, optimizer state and inputs.
    pub persistent_bytes: usize,
    /// These bytes by kind.
    pub persistent: PersistentBytes,
}

impl StagePlans {
    /// Traces every step of a stage on the plan device.
    pub fn trace(planner: &mut Engine, setup: &StageSetup) -> Result<StagePlans> {
        planner.enter_stage(setup)?;
        let (persistent_bytes, persistent) = (planner.device().persistent_bytes(), planner.persistent_parts());
        let train = (0..setup.train.len()).map(|b| planner.train_pass(None, b, 1.0, true, Sampling::Random));
        let train = train.collect::<Result<Vec<_>>>()?;
        let eval = (0..setup.eval.len()).map(|b| planner.eval_pass(None, b)).collect::<Result<Vec<_>>>()?;
        Ok(StagePlans { train, eval, update: planner.update(None, 0.0, 1)?, persistent_bytes, persistent })
    }

    /// Bytes that a run of the stage reserves.
    pub fn total_bytes(&self) -> usize {
        self.persistent_bytes + self.arena_bytes()
    }

    /// Bytes of the arena, which is large enough for each step.
    pub fn arena_bytes(&self) -> usize {
        self.train.iter().chain(&self.eval).chain([&self.update]).map(|p| p.peak_bytes()).max().unwrap_or(0)
    }
}

/// A stage, with the numbers that depend on the data.
pub struct StageContext {
    /// The setup for the engine.
    pub setup: StageSetup,
    /// Learning rates and length.
    pub schedule: Schedule,
    /// Shapes of the validation and test images, in the order of their buckets.
    pub eval_shapes: Vec<Shape>,
}

/// Computes the context of stage `index` of a recipe on a device.
pub fn stage_context(recipe: &Recipe, data: &RunData, index: usize, device: &Device) -> Result<StageContext> {
    let stage = &recipe.stages[index];
    let options = loader_options(recipe, data, index, 0, u64::MAX);
    let (passes, shapes) = plan_batches(data.train.dataset(), &train_pipeline(stage), &options)?;
    let schedule = Schedule::new(stage, passes.div_ceil(stage.accumulate() as u64));
    let mut eval_shapes: Vec<Shape> = Vec::new();
    for store in [&data.val, &data.test].into_iter().flatten() {
        for s in eval_buckets(stage, store) {
            if !eval_shapes.contains(&s) {
                eval_shapes.push(s);
            }
        }
    }
    let setup = StageSetup::new(stage, shapes, eval_shapes.clone(), data.max_gt);
    let dtype = stage.precision.on(device)?;
    let setup = StageSetup { index: index as u8, mask_runs: options.mask_runs, dtype, ..setup };
    Ok(StageContext { setup, schedule, eval_shapes })
}

/// Shapes of the evaluation inputs of a store, the same as [`crate::data::EvalLoader`] finds.
pub(crate) fn eval_buckets(stage: &StageConfig, store: &ImageStore) -> Vec<Shape> {
    let all: Vec<usize> = (0..store.dataset().images.len()).collect();
    eval_pipeline(stage).buckets(store.dataset(), &all, 1).shapes
}

/// Options of the training loader of stage `index`, for the passes from `start_step` up to `end_step`.
pub(crate) fn loader_options(
    recipe: &Recipe,
    data: &RunData,
    index: usize,
    start_step: u64,
    end_step: u64,
) -> LoaderOptions {
    let stage = &recipe.stages[index];
    LoaderOptions {
        seed: recipe.seed,
        stage: index as u8,
        batch: stage.micro_batch,
        max_gt: data.max_gt,
        mask_runs: data.mask_runs(&train_pipeline(stage)),
        times: stage.repeat as usize,
        filter: data.filter,
        threads: recipe.data.workers,
        prefetch: recipe.data.prefetch,
        start_step,
        end_step,
    }
}

/// Plans stages without training. Planning a stage again in another way (another `micro_batch`) costs some milliseconds
/// for each bucket.
pub struct Planner {
    device: Device,
    /// The data.
    pub data: RunData,
    /// The detector, without data.
    pub engine: Engine,
}

impl Planner {
    /// Opens a recipe's data and builds its detector. `device` is the device to plan for, or a planner of such a
    /// device.
    pub fn new(recipe: &Recipe, file: &Path, device: &Device) -> Result<Planner> {
        let data = RunData::open_with(recipe, file, recipe.model.mask_size().is_some())?;
        let classes = data.train.dataset().categories.len();
        let engine = Engine::new(&device.planner(), &recipe.model, classes, pixel_stats(&recipe.data), recipe.seed)?;
        Ok(Planner { device: device.clone(), data, engine })
    }

    /// The kind of device that it plans for.
    pub fn target(&self) -> Target {
        self.device.target()
    }

    /// Whether the detector has batch norm, in whichever mode stages use it.
    pub fn has_batch_norm(&self) -> bool {
        self.engine.store.all().iter().any(|p| p.role() == Role::Statistic)
    }

    /// Context of stage `index` of a recipe. Only its stages may differ from those of the recipe in [`Planner::new`].
    pub fn context(&self, recipe: &Recipe, index: usize) -> Result<StageContext> {
        stage_context(recipe, &self.data, index, &self.device)
    }

    /// Context and plans of stage `index`, for a recipe like that of [`Planner::context`].
    pub fn stage(&mut self, recipe: &Recipe, index: usize) -> Result<(StageContext, StagePlans)> {
        let context = self.context(recipe, index)?;
        let plans = StagePlans::trace(&mut self.engine, &context.setup)?;
        Ok((context, plans))
    }
}
