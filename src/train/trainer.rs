//! The loop: stages one after another, each from the last one's weights; evaluation, checkpoints, resume.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::evaluation::Evaluation;
use super::initial_weights::load_initial_weights;
use super::meter::{Clock, Late, LateLosses, Meter};
use crate::data::{ImageStore, Loader};
use crate::device::Device;
use crate::engine::Engine;
use crate::engine::feed::{RunData, host_batch, pixel_stats, train_pipeline};
use crate::error::{Error, Result};
use crate::eval::{Evaluator, MaskMetrics, Metrics};
use crate::models::Sampling;
use crate::plan::{StageContext, StagePlans, loader_options, stage_context};
use crate::recipe::Recipe;
use crate::run::checkpoint::{Checkpoint, Meta};
use crate::run::event::{self, Event, Observer};
use crate::tensor::DType;

/// Least time between two lines of the log.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Skipped images that are named at the end of a run.
const SKIPPED_SHOWN: usize = 50;

/// How a run is run.
#[derive(Clone, Debug, Default)]
pub struct TrainOptions {
    /// Folder for checkpoints.
    pub checkpoints: PathBuf,
    /// Go on from this checkpoint.
    pub resume: Option<PathBuf>,
    /// End after so many steps of the whole run.
    pub stop_after: Option<u64>,
    /// End after the running step when this becomes true.
    pub interrupt: Arc<AtomicBool>,
}

/// How a run ended.
pub struct Outcome {
    /// "done", "interrupted" or "stopped".
    pub reason: &'static str,
    /// Metrics of the final weights on the test split, or else on the validation split.
    pub metrics: Option<(String, Metrics)>,
    /// The same of masks.
    pub mask_metrics: Option<Metrics>,
    /// Detections behind the metrics, for pictures.
    pub detections: Vec<crate::detect::found::ImageDetections>,
    /// The split behind the metrics.
    pub store: Option<Arc<ImageStore>>,
    /// Seconds of the run.
    pub time_s: f64,
}

impl Outcome {
    /// All metrics by key.
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        let boxes = self.metrics.iter().map(|(_, m)| m);
        boxes.chain(&self.mask_metrics).flat_map(Metrics::by_key).collect()
    }
}

/// Trains a recipe on a device. `file` names the recipe in errors.
pub fn train(
    recipe: &Recipe,
    file: &Path,
    device: &Device,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let data = RunData::open_with(recipe, file, recipe.model.mask_size().is_some())?;
    train_on(recipe, file, &data, device, options, observer)
}

/// As [`train`], on data that was opened for this recipe, with masks if its detector has them.
pub fn train_on(
    recipe: &Recipe,
    file: &Path,
    data: &RunData,
    device: &Device,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let has_masks = recipe.model.mask_size().is_some();
    let classes = data.train.dataset().class_names();
    let mut engine = Engine::new(device, &recipe.model, classes.len(), pixel_stats(&recipe.data), recipe.seed)?;
    let category_ids = data.train.dataset().categories.iter().map(|c| c.id).collect();
    let mut meta = Meta::new(recipe.to_toml(), classes.clone(), category_ids);
    let resumed = options.resume.as_ref().map(|path| Checkpoint::load(path)).transpose()?;
    if let Some(c) = &resumed {
        if c.meta.classes != classes {
            let message = format!("its classes {:?} are not those of the data now, {classes:?}", c.meta.classes);
            return Err(Error::checkpoint(&c.path, message));
        }
        c.load_model(&engine.store, false)?;
        c.model_values(&engine.store, true)?; // averages, too, must be finite
        meta = Meta { recipe: meta.recipe, category_ids: meta.category_ids, ..c.meta.clone() };
    } else {
        load_initial_weights(recipe, &classes, &engine.store)?.iter().for_each(|note| observer.note(note));
    }
    let stores = [("val", &data.val), ("test", &data.test)];
    let mut evaluators = BTreeMap::new();
    for (split, store) in stores {
        let Some(store) = store else { continue };
        let dataset = store.dataset();
        let wanted = match (has_masks, recipe.expects_masks()) {
            (false, _) => MaskMetrics::Off,
            (true, false) => MaskMetrics::IfUsable,
            (true, true) => MaskMetrics::Required,
        };
        let (evaluator, without_masks) = Evaluator::open(dataset, wanted)?;
        without_masks.iter().for_each(|why| observer.note(&format!("{split}: {why}")));
        evaluators.insert(split, evaluator);
    }
    let left_out = data.notes();
    left_out.iter().for_each(|note| observer.note(note));
    observer.event(&Event::Start(event::Start {
        version: env!("CARGO_PKG_VERSION").into(),
        recipe: recipe.name.clone(),
        seed: recipe.seed,
        device: format!("{device:?}"),
        recipe_crc32c: recipe.crc32c(),
        threads: rayon::current_num_threads(),
        classes,
        parameters: engine.store.all().iter().map(|p| p.numel()).sum(),
        resumed_at: resumed.as_ref().map(|c| c.meta.global_step),
        left_out,
    }))?;
    let mut run = Run {
        recipe,
        data,
        options,
        observer,
        planner: Engine::new(
            &device.planner(),
            &recipe.model,
            data.train.dataset().categories.len(),
            pixel_stats(&recipe.data),
            recipe.seed,
        )?,
        clock: Clock { before: meta.time_s, start: Instant::now(), waited: Duration::ZERO },
        meta,
        evaluators,
        overflows: Overflows::default(),
    };
    let mut outcome = None;
    for index in run.meta.stage..recipe.stages.len() {
        let here = resumed.as_ref().filter(|c| c.meta.stage == index);
        outcome = Some(run.stage(&mut engine, index, here)?);
        if outcome.as_ref().is_some_and(|o| o.reason != "done") {
            break;
        }
    }
    run.note_skipped();
    let outcome = outcome.ok_or_else(|| Error::recipe(file, "stage", "no stage: add at least one [[stage]]"))?;
    run.observer.event(&Event::End(event::End {
        reason: outcome.reason.into(),
        global_step: run.meta.global_step,
        time_s: outcome.time_s,
        data_wait: run.clock.waited.as_secs_f64() / run.clock.start.elapsed().as_secs_f64().max(1e-9),
    }))?;
    Ok(outcome)
}

/// Steps in a row that f16 may overflow in: by then the largest scale, 2^24, has fallen to 1, and what overflows is not its fault.
const MOST_OVERFLOWS: u32 = 24;

/// Steps that the optimizer skipped because a gradient in f16 was not finite.
#[derive(Default)]
struct Overflows {
    /// Whether a step may be skipped.
    allowed: bool,
    /// In this stage of this process.
    steps: u64,
    in_a_row: u32,
    /// Norm of the gradient of the last step that was taken.
    last_norm: f32,
}

impl Overflows {
    fn of(dtype: DType) -> Overflows {
        Overflows { allowed: dtype == DType::F16, ..Overflows::default() }
    }

    /// Counts a step by the norm of its gradient; false if it must not be as it is.
    fn tolerates(&mut self, norm: f32) -> bool {
        let overflow = !norm.is_finite();
        self.steps += u64::from(overflow);
        self.in_a_row = if overflow { self.in_a_row + 1 } else { 0 };
        !overflow || (self.allowed && self.in_a_row <= MOST_OVERFLOWS)
    }
}

pub(super) struct Run<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) data: &'a RunData,
    pub(super) options: &'a TrainOptions,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) planner: Engine,
    pub(super) meta: Meta,
    pub(super) clock: Clock,
    pub(super) evaluators: BTreeMap<&'static str, Evaluator>,
    overflows: Overflows,
}

impl Run<'_> {
    /// Trains one stage, from `resumed` if the checkpoint lies in it.
    fn stage(&mut self, engine: &mut Engine, index: usize, resumed: Option<&Checkpoint>) -> Result<Outcome> {
        let stage = &self.recipe.stages[index];
        let context = stage_context(self.recipe, self.data, index, engine.device())?;
        let plans = StagePlans::trace(&mut self.planner, &context.setup)?;
        engine.device().release_arena(); // the last stage's may be larger, and would stay beside this one's inputs
        engine.enter_stage(&context.setup)?;
        engine.device().reserve_arena(plans.arena_bytes())?;
        if let Some(c) = resumed {
            engine.load_optimizer(|name| c.has(name), c.meta.step, |name, n| c.values(name, n))?;
        } else {
            (self.meta.stage, self.meta.step) = (index, 0);
        }
        let total = context.schedule.total_steps();
        let stage_start = self.meta.global_step - self.meta.step;
        let later: u64 = (index + 1..self.recipe.stages.len())
            .map(|i| stage_context(self.recipe, self.data, i, engine.device()).map(|c| c.schedule.total_steps()))
            .sum::<Result<u64>>()?;
        self.observer.event(&Event::Stage(event::Stage {
            stage: stage.name.clone(),
            stage_index: index,
            stages: self.recipe.stages.len(),
            steps: total,
            steps_per_epoch: context.schedule.steps_per_epoch(),
            total_steps: stage_start + total + later,
            images: self.data.train.dataset().training_images(self.data.filter)?.len(),
            buckets: context.setup.train.iter().map(|b| [b.h, b.w]).collect(),
            persistent_bytes: plans.persistent_bytes,
            arena_bytes: plans.arena_bytes(),
            global_step: self.meta.global_step,
        }))?;
        let reason = self.steps(engine, index, &context, &plans)?;
        if reason != "done" {
            self.save(engine, "last")?;
            return Ok(Outcome {
                reason,
                metrics: None,
                mask_metrics: None,
                detections: Vec::new(),
                store: None,
                time_s: self.clock.now(),
            });
        }
        self.save(engine, "last")?;
        self.save(engine, &format!("stage-{}", stage.name))?;
        engine.swap_average(); // the next stage, and the final evaluation, start from the average where there is one
        let mut outcome = Outcome {
            reason,
            metrics: None,
            mask_metrics: None,
            detections: Vec::new(),
            store: None,
            time_s: self.clock.now(),
        };
        if index + 1 == self.recipe.stages.len() {
            let split = if self.data.test.is_some() { "test" } else { "val" };
            if let Some(store) = self.data.test.as_ref().or(self.data.val.as_ref()) {
                let found = self.evaluate(engine, index, &context, &plans, split, store)?;
                let Some(Evaluation { metrics, masks, detections }) = found else {
                    return Ok(Outcome { reason: "interrupted", ..outcome });
                };
                self.log_eval(index, &context, split, &metrics, masks.as_ref())?;
                if split == "val" {
                    engine.swap_average(); // a checkpoint holds the weights and their average
                    self.keep_best(engine, &metrics)?;
                    engine.swap_average();
                }
                outcome.metrics = Some((split.into(), metrics));
                outcome.mask_metrics = masks;
                outcome.detections = detections;
                outcome.store = Some(store.clone());
            }
            outcome.time_s = self.clock.now();
        }
        Ok(outcome)
    }

    fn steps(
        &mut self,
        engine: &mut Engine,
        index: usize,
        context: &StageContext,
        plans: &StagePlans,
    ) -> Result<&'static str> {
        let stage = &self.recipe.stages[index];
        let (total, passes) = (context.schedule.total_steps(), stage.accumulate() as u64);
        self.overflows = Overflows::of(context.setup.dtype);
        if self.meta.evaluation_due && !self.evaluate_val(engine, index, context, plans)? {
            return Ok("interrupted");
        }
        if self.meta.step >= total {
            return Ok("done");
        }
        let _stage = engine.device().enter(&stage.name); // in errors and profiles
        let options = loader_options(self.recipe, self.data, index, self.meta.step * passes, total * passes);
        let mut loader = Loader::new(self.data.train.clone(), train_pipeline(stage), options)?;
        let mut meter = Meter::new(self.clock.waited);
        // On a GPU the losses of a step are read when the next one is under way, so that the device never waits for the host.
        let reads_late = engine.device().runs_kernels();
        let (mut late, mut grad_norm): (Option<Late>, f32) = (None, 0.0);
        while self.meta.step < total {
            let interrupted = self.options.interrupt.load(Ordering::Relaxed);
            if interrupted || self.options.stop_after.is_some_and(|n| self.meta.global_step >= n) {
                if let Some(done) = late.take() {
                    self.read(done, &mut meter)?;
                }
                return Ok(if interrupted { "interrupted" } else { "stopped" });
            }
            let lr = context.schedule.lr(self.meta.step);
            let mut losses: Vec<LateLosses> = Vec::new();
            for pass in 0..passes {
                let before = loader.waited();
                let batch = match loader.next() {
                    Err(error) if pass == 0 && self.meta.global_step > 0 => {
                        self.save(engine, "last")?; // a bad picture costs no step
                        return Err(error);
                    }
                    other => other?,
                };
                self.clock.waited += loader.waited() - before;
                let inputs = engine.train_inputs(batch.bucket);
                inputs.load(&host_batch(&batch, &[], &[]))?;
                let first_image = (pass * stage.micro_batch as u64) as u32;
                inputs.set_key(self.recipe.seed, index as u8, self.meta.step, first_image)?;
                let (plan, weight) = (&plans.train[batch.bucket], 1.0 / passes as f32);
                engine.train_pass(Some(plan), batch.bucket, weight, pass == 0, Sampling::Random)?;
                if reads_late {
                    losses.push(Box::new(engine.losses_later()?));
                } else {
                    let now = engine.losses()?;
                    if !self.overflows.allowed {
                        self.check_finite(self.meta.global_step, Some(engine), &now)?;
                    }
                    losses.push(Box::new(move || Ok(now)));
                }
                loader.recycle(batch);
            }
            engine.update(Some(&plans.update), lr, self.meta.step + 1)?;
            let norm = Box::new(engine.grad_norm_later()?);
            let mut done = Some(Late { global_step: self.meta.global_step, losses, norm });
            if reads_late {
                std::mem::swap(&mut done, &mut late); // the step before's
            }
            if let Some(done) = done {
                grad_norm = self.read(done, &mut meter)?;
            }
            self.meta.step += 1;
            self.meta.global_step += 1;
            let (step, last) = (self.meta.step, self.meta.step == total);
            // An evaluation starts the meter anew: without a line before it, short epochs would log no loss at all.
            let eval_due = context.schedule.eval_due(step, stage.eval_every_epochs) && !(last && self.is_final(index));
            let save_due = stage.checkpoint_every_steps > 0 && step % stage.checkpoint_every_steps == 0 && !last;
            if last || eval_due || save_due {
                // What is saved or evaluated is what has been looked at.
                if let Some(done) = late.take() {
                    grad_norm = self.read(done, &mut meter)?;
                }
            }
            if (last || eval_due || meter.since() >= LOG_EVERY) && meter.has_steps() {
                let event = self.train_event(grad_norm, index, context, plans, lr, &mut meter);
                self.observer.event(&event)?;
            }
            if eval_due {
                if !self.evaluate_val(engine, index, context, plans)? {
                    return Ok("interrupted");
                }
                meter = Meter::new(self.clock.waited);
            }
            if save_due {
                self.save(engine, "last")?;
            }
        }
        Ok("done")
    }

    /// Names the pictures that were left out because they are bad.
    fn note_skipped(&mut self) {
        let splits =
            [("train", Some(&self.data.train)), ("val", self.data.val.as_ref()), ("test", self.data.test.as_ref())];
        for (split, store) in splits {
            let skipped = store.map_or(Vec::new(), |store| store.skipped());
            if skipped.is_empty() {
                continue;
            }
            self.observer.note(&format!("{split}: {} bad images were skipped", skipped.len()));
            for (_, why) in skipped.iter().take(SKIPPED_SHOWN) {
                self.observer.note(&format!("  {why}"));
            }
            if skipped.len() > SKIPPED_SHOWN {
                let rest = skipped.len() - SKIPPED_SHOWN;
                self.observer.note(&format!("  and {rest} more: `dataset check` lists them all"));
            }
        }
    }

    fn is_final(&self, index: usize) -> bool {
        index + 1 == self.recipe.stages.len() && self.data.test.is_none()
    }

    fn train_event(
        &self,
        grad_norm: f32,
        index: usize,
        context: &StageContext,
        plans: &StagePlans,
        lr: f64,
        meter: &mut Meter,
    ) -> Event {
        let losses = meter.losses();
        let mut by_name: BTreeMap<String, f64> =
            self.planner.loss_names().iter().zip(&losses).map(|(name, v)| (name.to_string(), *v)).collect();
        by_name.insert("loss".into(), losses.iter().sum());
        let (images_per_s, data_wait) = meter.read(self.clock.waited);
        Event::Train(event::Train {
            stage: self.recipe.stages[index].name.clone(),
            stage_index: index,
            step: self.meta.step,
            global_step: self.meta.global_step,
            epoch: context.schedule.epoch(self.meta.step),
            lr,
            losses: by_name,
            grad_norm: f64::from(grad_norm),
            images_per_s,
            data_wait,
            time_s: self.clock.now(),
            memory_bytes: plans.persistent_bytes + plans.arena_bytes(),
            skipped_steps: self.overflows.steps,
        })
    }

    /// Takes what a step has measured; returns the norm of its gradient, or of the last one that was taken.
    fn read(&mut self, done: Late, meter: &mut Meter) -> Result<f32> {
        let (passes, images) = (done.losses.len() as f64, self.recipe.stages[self.meta.stage].images_per_step);
        let mut sums = vec![0.0; self.planner.loss_names().len()];
        for losses in done.losses {
            let losses = losses()?;
            if !self.overflows.allowed {
                self.check_finite(done.global_step, None, &losses)?; // the weights are a step further by now
            }
            sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += f64::from(loss) / passes);
        }
        let norm = (done.norm)()?;
        let tolerated = self.overflows.tolerates(norm);
        // A loss that is not finite while its gradient is, was no overflow that the optimizer has seen.
        if norm.is_finite() || !tolerated {
            self.check_finite(done.global_step, None, &sums.iter().map(|s| *s as f32).collect::<Vec<_>>())?;
        }
        if !tolerated {
            return Err(Error::non_finite(done.global_step, "norm of the gradient".into(), norm));
        }
        meter.add(images, norm.is_finite().then_some(&sums[..]));
        if norm.is_finite() {
            self.overflows.last_norm = norm;
        }
        Ok(self.overflows.last_norm)
    }

    /// Err at the first loss that is not finite, naming the parameter or gradient behind it if one is to be found.
    fn check_finite(&self, step: u64, engine: Option<&Engine>, losses: &[f32]) -> Result<()> {
        let Some(i) = losses.iter().position(|v| !v.is_finite()) else { return Ok(()) };
        let mut tensor = format!("loss {}", self.planner.loss_names()[i]);
        if let Some(name) = engine.map_or(Ok(None), Engine::first_non_finite)? {
            tensor = format!("{tensor} (first non-finite: {name})");
        }
        Err(Error::non_finite(step, tensor, losses[i]))
    }
}
