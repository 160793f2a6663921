//! Evaluations within a run: on the validation split while it trains, and of the final weights.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::context::{Run, StageRun};
use super::outcome::{Ended, Results};
use crate::data::{ImageStore, Shape};
use crate::detect::found::{ImageDetections, to_results};
use crate::detect::infer::detect_all;
use crate::engine::feed::eval_pipeline;
use crate::error::Result;
use crate::eval::Metrics;
use crate::plan::eval_buckets;
use crate::run::event::{self, Event};

/// What an evaluation has found.
struct Evaluation {
    metrics: Metrics,
    masks: Option<Metrics>,
    detections: Vec<ImageDetections>,
}

/// Evaluates the running average (or the weights) on the validation split, if there is one, and keeps the best
/// checkpoint.
///
/// The last checkpoint is written first and says that the evaluation is due: no step is lost in a long evaluation, and
/// a resumed run begins with it.
pub(super) fn evaluate_val(run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<ControlFlow<Ended>> {
    let Some(store) = &run.data.val else {
        run.save("last")?;
        return Ok(ControlFlow::Continue(()));
    };
    run.meta.evaluation_due = true;
    run.save("last")?;
    run.engine.swap_average();
    let found = evaluate(run, stage, "val", store);
    run.engine.swap_average();
    let Some(Evaluation { metrics, masks, .. }) = found? else { return Ok(ControlFlow::Break(Ended::Interrupted)) };
    run.meta.evaluation_due = false;
    log(run, stage, "val", &metrics, masks.as_ref())?;
    if !keep_best(run, &metrics)? {
        run.save("last")?;
    }
    Ok(ControlFlow::Continue(()))
}

/// Evaluates the weights that the last stage leaves, which are in place: on the test split, or else on the validation
/// split, where the best checkpoint follows. `None` without either split.
pub(super) fn evaluate_final(run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<ControlFlow<Ended, Option<Results>>> {
    let split = if run.data.test.is_some() { "test" } else { "val" };
    let Some(store) = run.data.test.as_ref().or(run.data.val.as_ref()) else {
        return Ok(ControlFlow::Continue(None));
    };
    let Some(Evaluation { metrics, masks, detections }) = evaluate(run, stage, split, store)? else {
        return Ok(ControlFlow::Break(Ended::Interrupted));
    };
    log(run, stage, split, &metrics, masks.as_ref())?;
    if split == "val" {
        run.engine.swap_average(); // a checkpoint holds the weights and their average
        keep_best(run, &metrics)?;
        run.engine.swap_average();
    }
    let results = Results { split, store: store.clone(), metrics, mask_metrics: masks, detections };
    Ok(ControlFlow::Continue(Some(results)))
}

/// Writes the best checkpoint, and gives it the name of the last one too, if no evaluation on the validation split was
/// better. The best one comes first: were the run killed in between, the last one would not know of it, and the
/// evaluation would be repeated.
fn keep_best(run: &mut Run<'_>, metrics: &Metrics) -> Result<bool> {
    let is_best = run.meta.best_ap.is_none_or(|best| metrics.ap() > best);
    if !is_best {
        return Ok(false);
    }
    run.meta.best_ap = Some(metrics.ap());
    run.save("best")?;
    run.link("best", "last")?;
    Ok(true)
}

fn log(run: &mut Run<'_>, stage: &StageRun<'_>, split: &str, metrics: &Metrics, masks: Option<&Metrics>) -> Result<()> {
    let mut numbers = metrics.by_key();
    numbers.extend(masks.map(Metrics::by_key).unwrap_or_default());
    run.observer.event(&Event::Eval(event::Eval {
        stage: stage.config.name.clone(),
        stage_index: stage.index,
        split: split.into(),
        step: run.meta.step,
        global_step: run.meta.global_step,
        epoch: stage.context.schedule.epoch(run.meta.step),
        time_s: run.clock.now(),
        metrics: numbers,
        per_class: metrics.per_class.iter().map(|(k, v)| (k.clone(), v.ap)).collect(),
    }))
}

/// Runs the detector over a split and measures what it finds; `None` if the user interrupts it.
fn evaluate(
    run: &mut Run<'_>,
    stage: &StageRun<'_>,
    split: &str,
    store: &Arc<ImageStore>,
) -> Result<Option<Evaluation>> {
    // The engine has the buckets of all splits; this split's are some of them.
    let shapes = eval_buckets(stage.config, store);
    let place = |s: &Shape| stage.context.eval_shapes.iter().position(|e| e == s).expect("stage: shapes of all splits");
    let order: Vec<usize> = shapes.iter().map(place).collect();
    let interrupt = &run.options.interrupt;
    let found = detect_all(
        &mut run.engine,
        &stage.plans.eval,
        &order,
        store,
        eval_pipeline(stage.config),
        stage.config.eval_batch(),
        run.recipe.data.workers,
        |_, _| !interrupt.load(Ordering::Relaxed),
    )?;
    let Some(detections) = found else { return Ok(None) };
    let (evaluator, rows) = (&run.evaluators[split], to_results(&detections, store));
    let masks = evaluator.has_masks().then(|| evaluator.evaluate_masks(&rows)).transpose()?;
    Ok(Some(Evaluation { metrics: evaluator.evaluate(&rows)?, masks, detections }))
}
