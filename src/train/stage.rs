//! One stage of a run: memory, steps, final checkpoints. This file is the order of everything; the parts are in files
//! of their own.

use std::ops::ControlFlow;

use super::context::{Run, StageRun};
use super::evaluation::evaluate_final;
use super::hooks::{Hook, hooks};
use super::measurements::{Measured, Measurements};
use super::outcome::{Ended, Outcome};
use super::passes::Passes;
use crate::error::Result;
use crate::plan::{StagePlans, stage_context};
use crate::run::checkpoint::Checkpoint;
use crate::run::event::{self, Event};

/// Trains a stage, from `resumed` if that checkpoint lies in it.
pub(super) fn run_stage(run: &mut Run<'_>, index: usize, resumed: Option<&Checkpoint>) -> Result<Outcome> {
    let stage = enter(run, index, resumed)?;
    announce(run, &stage)?;
    let ended = run_steps(run, &stage)?;
    run.save("last")?;
    let mut outcome = Outcome { ended, results: None, time_s: run.clock.now() };
    if ended == Ended::Done {
        run.link("last", &format!("stage-{}", stage.config.name))?;
        run.engine.swap_average(); // the next stage and the final evaluation start from the running average, if one is kept
        if stage.is_last {
            match evaluate_final(run, &stage)? {
                ControlFlow::Continue(results) => outcome.results = results,
                ControlFlow::Break(ended) => outcome.ended = ended,
            }
        }
        outcome.time_s = run.clock.now();
    }
    Ok(outcome)
}

/// The steps of a stage, one after the other, and the hooks around them.
fn run_steps(run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<Ended> {
    let mut hooks = hooks(run);
    if let ControlFlow::Break(ended) = each(&mut hooks, |hook| hook.before_steps(run, stage))? {
        return Ok(ended);
    }
    if run.meta.step >= stage.steps() {
        return Ok(Ended::Done);
    }
    let _range = run.engine.device().enter(&stage.config.name); // names the stage in errors and profiles
    let mut passes = Passes::new(run, stage)?;
    let mut measurements = Measurements::new(run, stage);
    while run.meta.step < stage.steps() {
        if let ControlFlow::Break(ended) = each(&mut hooks, |hook| hook.before_step(run, stage))? {
            tell(&mut hooks, measurements.read_all(run, stage)?);
            return Ok(ended);
        }
        let losses = passes.run_step(run, stage)?; // for each micro-batch: data, forward, losses, backward
        let lr = stage.context.schedule.lr(run.meta.step);
        run.engine.update(Some(&stage.plans.update), lr, run.meta.step + 1)?;
        measurements.push(losses, run)?;
        tell(&mut hooks, measurements.read_due(run, stage)?);
        run.meta.step += 1;
        run.meta.global_step += 1;
        // Weights that are saved or evaluated belong to a step whose losses were looked at.
        if stage.is_at_end(run) || hooks.iter().any(|hook| hook.uses_weights(run, stage)) {
            tell(&mut hooks, measurements.read_all(run, stage)?);
        }
        if let ControlFlow::Break(ended) = each(&mut hooks, |hook| hook.after_step(run, stage))? {
            return Ok(ended);
        }
    }
    Ok(Ended::Done)
}

/// Calls every hook in order, until one ends the stage.
fn each(
    hooks: &mut [Box<dyn Hook>],
    mut call: impl FnMut(&mut dyn Hook) -> Result<ControlFlow<Ended>>,
) -> Result<ControlFlow<Ended>> {
    for hook in hooks {
        if let ended @ ControlFlow::Break(_) = call(&mut **hook)? {
            return Ok(ended);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Tells every hook what steps have measured.
fn tell(hooks: &mut [Box<dyn Hook>], steps: Vec<Measured>) {
    for measured in steps {
        hooks.iter_mut().for_each(|hook| hook.measured(&measured));
    }
}

/// Plans the stage and gives the engine its memory: inputs, gradients, optimizer state (that of `resumed`, or zeros),
/// arena.
fn enter<'a>(run: &mut Run<'a>, index: usize, resumed: Option<&Checkpoint>) -> Result<StageRun<'a>> {
    let recipe = run.recipe;
    let context = stage_context(recipe, run.data, index, run.engine.device())?;
    let plans = StagePlans::trace(&mut run.planner, &context.setup)?;
    run.engine.device().release_arena(); // a larger arena of the stage before must not lie beside this stage's inputs
    run.engine.enter_stage(&context.setup)?;
    run.engine.device().reserve_arena(plans.arena_bytes())?;
    match resumed {
        Some(c) => run.engine.load_optimizer(|name| c.has(name), c.meta.step, |name, n| c.values(name, n))?,
        None => (run.meta.stage, run.meta.step) = (index, 0),
    }
    let is_last = index + 1 == recipe.stages.len();
    Ok(StageRun { index, config: &recipe.stages[index], context, plans, is_last })
}

/// Tells that the stage begins, or goes on.
fn announce(run: &mut Run<'_>, stage: &StageRun<'_>) -> Result<()> {
    let before = run.meta.global_step - run.meta.step;
    let later: u64 = (stage.index + 1..run.recipe.stages.len())
        .map(|i| stage_context(run.recipe, run.data, i, run.engine.device()).map(|c| c.schedule.total_steps()))
        .sum::<Result<u64>>()?;
    run.observer.event(&Event::Stage(event::Stage {
        stage: stage.config.name.clone(),
        stage_index: stage.index,
        stages: run.recipe.stages.len(),
        steps: stage.steps(),
        steps_per_epoch: stage.context.schedule.steps_per_epoch(),
        total_steps: before + stage.steps() + later,
        images: run.data.train.dataset().training_images(run.data.filter)?.len(),
        buckets: stage.context.setup.train.iter().map(|b| [b.height as usize, b.width as usize]).collect(),
        persistent_bytes: stage.plans.persistent_bytes,
        arena_bytes: stage.plans.arena_bytes(),
        global_step: run.meta.global_step,
    }))
}
