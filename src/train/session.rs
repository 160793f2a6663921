//! A whole run: the model is made or resumed, then each stage of the recipe is trained.

use std::path::Path;

use super::context::Run;
use super::initial_weights::load_initial_weights;
use super::options::TrainOptions;
use super::outcome::{Ended, Outcome};
use super::stage::run_stage;
use crate::device::Device;
use crate::engine::Engine;
use crate::engine::feed::{RunData, pixel_stats};
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::run::checkpoint::{Checkpoint, Meta, Weights};
use crate::run::event::{self, Event, Observer};

/// Number of skipped images that are named at the end of a run.
const SKIPPED_SHOWN: usize = 50;

/// Trains a recipe on `device`. `file` names the recipe in errors; `data` was opened for it, with masks if its detector
/// has them.
pub fn train(
    recipe: &Recipe,
    file: &Path,
    data: &RunData,
    device: &Device,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let resumed = options.resume.as_ref().map(|path| Checkpoint::load(path)).transpose()?;
    let engine = new_engine(recipe, data, device)?;
    let meta = load_weights(recipe, data, &engine, resumed.as_ref(), observer)?;
    let planner = new_engine(recipe, data, &device.planner())?;
    let mut run = Run::new(recipe, data, options, observer, engine, planner, meta)?;
    run.announce(resumed.as_ref())?;
    let mut outcome = None;
    for index in run.meta.stage..recipe.stages.len() {
        let here = resumed.as_ref().filter(|c| c.meta.stage == index);
        let stage = run_stage(&mut run, index, here)?;
        let goes_on = stage.ended == Ended::Done;
        outcome = Some(stage);
        if !goes_on {
            break;
        }
    }
    note_skipped(&mut run);
    let outcome = outcome.ok_or_else(|| Error::recipe(file, "stage", "no stage: add at least one [[stage]]"))?;
    run.observer.event(&Event::End(event::End {
        reason: outcome.ended.name().into(),
        global_step: run.meta.global_step,
        time_s: outcome.time_s,
        data_wait: run.clock.waited_share(),
    }))?;
    Ok(outcome)
}

fn new_engine(recipe: &Recipe, data: &RunData, device: &Device) -> Result<Engine> {
    let classes = data.train.dataset().categories.len();
    Engine::new(device, &recipe.model, classes, pixel_stats(&recipe.data), recipe.seed)
}

/// Fills the model from the checkpoint that the run resumes from, or else from `init.weights`. Returns the run's
/// counters.
///
/// Errors: `Checkpoint` if it is of other classes, of another model, or holds values that are not finite.
fn load_weights(
    recipe: &Recipe,
    data: &RunData,
    engine: &Engine,
    resumed: Option<&Checkpoint>,
    observer: &mut dyn Observer,
) -> Result<Meta> {
    let dataset = data.train.dataset();
    let classes = dataset.class_names();
    let category_ids = dataset.categories.iter().map(|c| c.id).collect();
    let meta = Meta::new(recipe.to_toml(), classes.clone(), category_ids);
    let Some(c) = resumed else {
        load_initial_weights(recipe, &classes, &engine.store)?.iter().for_each(|note| observer.note(note));
        return Ok(meta);
    };
    if c.meta.classes != classes {
        let message = format!("its classes {:?} are not those of the data now, {classes:?}", c.meta.classes);
        return Err(Error::checkpoint(&c.path, message));
    }
    c.load_model(&engine.store, Weights::Trained)?;
    c.model_values(&engine.store, Weights::Averaged)?; // the running averages, too, must be finite
    Ok(Meta { recipe: meta.recipe, category_ids: meta.category_ids, ..c.meta.clone() })
}

/// Names the images that were left out because they could not be read.
fn note_skipped(run: &mut Run<'_>) {
    let data = run.data;
    let splits = [("train", Some(&data.train)), ("val", data.val.as_ref()), ("test", data.test.as_ref())];
    for (split, store) in splits {
        let skipped = store.map_or(Vec::new(), |store| store.skipped());
        if skipped.is_empty() {
            continue;
        }
        run.observer.note(&format!("{split}: {} bad images were skipped", skipped.len()));
        for (_, why) in skipped.iter().take(SKIPPED_SHOWN) {
            run.observer.note(&format!("  {why}"));
        }
        if skipped.len() > SKIPPED_SHOWN {
            let rest = skipped.len() - SKIPPED_SHOWN;
            run.observer.note(&format!("  and {rest} more: `dataset check` lists them all"));
        }
    }
}
