//! Evaluation and checkpoints within a run.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::trainer::Run;
use crate::data::{ImageStore, Shape};
use crate::detect::found::{ImageDetections, to_results};
use crate::detect::infer::detect_all;
use crate::engine::Engine;
use crate::engine::feed::eval_pipeline;
use crate::error::{Error, Result};
use crate::eval::Metrics;
use crate::plan::{StageContext, StagePlans, eval_buckets};
use crate::run::checkpoint::save;
use crate::run::event::{self, Event};

/// What an evaluation has found.
pub(super) struct Evaluation {
    pub(super) metrics: Metrics,
    pub(super) masks: Option<Metrics>,
    pub(super) detections: Vec<ImageDetections>,
}

impl Run<'_> {
    /// Evaluates on the validation split, if there is one; false if it was interrupted. The last checkpoint is written
    /// first: whatever happens in a long evaluation, no step is lost, and a resumed run begins with the evaluation.
    pub(super) fn evaluate_val(
        &mut self,
        engine: &mut Engine,
        index: usize,
        context: &StageContext,
        plans: &StagePlans,
    ) -> Result<bool> {
        let Some(store) = &self.data.val else {
            self.save(engine, "last")?;
            return Ok(true);
        };
        self.meta.evaluation_due = true;
        self.save(engine, "last")?;
        engine.swap_average();
        let result = self.evaluate(engine, index, context, plans, "val", store);
        engine.swap_average();
        let Some(Evaluation { metrics, masks, .. }) = result? else { return Ok(false) };
        self.meta.evaluation_due = false;
        self.log_eval(index, context, "val", &metrics, masks.as_ref())?;
        self.keep_best(engine, &metrics)?;
        self.save(engine, "last")?;
        Ok(true)
    }

    /// Writes the best checkpoint if no evaluation on the validation split was better.
    pub(super) fn keep_best(&mut self, engine: &Engine, metrics: &Metrics) -> Result<()> {
        if self.meta.best_ap.is_none_or(|best| metrics.ap() > best) {
            self.meta.best_ap = Some(metrics.ap());
            self.save(engine, "best")?;
        }
        Ok(())
    }

    pub(super) fn log_eval(
        &mut self,
        index: usize,
        context: &StageContext,
        split: &str,
        metrics: &Metrics,
        masks: Option<&Metrics>,
    ) -> Result<()> {
        let mut numbers = metrics.by_key();
        numbers.extend(masks.map(Metrics::by_key).unwrap_or_default());
        self.observer.event(&Event::Eval(event::Eval {
            stage: self.recipe.stages[index].name.clone(),
            stage_index: index,
            split: split.into(),
            step: self.meta.step,
            global_step: self.meta.global_step,
            epoch: context.schedule.epoch(self.meta.step),
            time_s: self.clock.now(),
            metrics: numbers,
            per_class: metrics.per_class.iter().map(|(k, v)| (k.clone(), v.ap)).collect(),
        }))
    }

    pub(super) fn evaluate(
        &mut self,
        engine: &mut Engine,
        index: usize,
        context: &StageContext,
        plans: &StagePlans,
        split: &str,
        store: &Arc<ImageStore>,
    ) -> Result<Option<Evaluation>> {
        let stage = &self.recipe.stages[index];
        // This split's buckets, as the engine numbers them.
        let mine = eval_buckets(stage, store);
        let place = |s: &Shape| context.eval_shapes.iter().position(|e| e == s).expect("trainer: shapes of all splits");
        let order: Vec<usize> = mine.iter().map(place).collect();
        let pipeline = eval_pipeline(stage);
        let found = detect_all(
            engine,
            &plans.eval,
            &order,
            store,
            pipeline,
            stage.eval_batch(),
            self.recipe.data.workers,
            |_, _| !self.options.interrupt.load(Ordering::Relaxed),
        )?;
        let Some(detections) = found else { return Ok(None) };
        let (evaluator, rows) = (&self.evaluators[split], to_results(&detections, store));
        let masks = evaluator.has_masks().then(|| evaluator.evaluate_masks(&rows)).transpose()?;
        Ok(Some(Evaluation { metrics: evaluator.evaluate(&rows)?, masks, detections }))
    }

    pub(super) fn save(&mut self, engine: &Engine, name: &str) -> Result<()> {
        if let Some(name) = engine.first_spoilt()? {
            return Err(Error::non_finite(self.meta.global_step, name, f32::NAN));
        }
        self.meta.time_s = self.clock.now();
        let path = self.options.checkpoints.join(format!("{name}.safetensors"));
        save(&path, &self.meta, &engine.state())?;
        self.observer.event(&Event::Checkpoint(event::CheckpointWritten {
            path: path.display().to_string(),
            global_step: self.meta.global_step,
        }))
    }
}
