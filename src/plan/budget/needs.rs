//! The memory that a stage needs in each way to run it. Each part is planned once.
//!
//! Main type: [`Needs`].

use std::collections::HashMap;

use super::limit::Budget;
use super::outcome::{Change, MOST_IMAGES, StageFit};
use super::ways::{STATE, Way, ways_with};
use crate::engine::StageSetup;
use crate::error::{Error, Result};
use crate::format::bytes;
use crate::format::counted;
use crate::plan::{Planner, StagePlans};
use crate::recipe::{NormMode, Recipe, Recompute, StageConfig, StatePrecision};
use crate::tensor::DType;

/// Bytes that a part of a stage needs.
#[derive(Clone, Copy)]
struct Need {
    /// Kept between steps.
    kept: usize,
    /// The arena of the largest step.
    arena: usize,
}

impl Need {
    fn total(self) -> usize {
        self.kept + self.arena
    }
}

/// A stage that no way makes fit.
pub(super) struct TooLittle {
    stage: String,
    /// The smallest number of bytes that any way needs.
    least: usize,
    /// The same with `optimizer.state = "auto"` instead of f32, if that is less.
    auto: Option<usize>,
    message: String,
}

impl TooLittle {
    /// The error for `all` stages that do not fit: it names the one that needs most, because its bytes are enough for
    /// every stage. With a `hint_budget` it also says whether `optimizer.state = "auto"` would need less. `None` if
    /// `all` is empty.
    pub(super) fn error(all: &[TooLittle], hint_budget: Option<usize>) -> Option<Error> {
        let worst = all.iter().rev().max_by_key(|stage| stage.least)?;
        let mut message = worst.message.clone();
        let auto = all.iter().map(|stage| stage.auto.unwrap_or(stage.least)).max()?;
        if let Some(budget) = hint_budget.filter(|_| auto < worst.least) {
            let stages = all.iter().filter(|stage| stage.auto.is_some());
            let sets: Vec<_> = stages.map(|s| format!("--set stage.{}.{STATE}=auto", s.stage)).collect();
            message += &match auto <= budget {
                true => format!("; {} would make it fit", sets.join(" ")),
                false => format!("; with {} {} ({auto} bytes) would do", sets.join(" "), bytes(auto)),
            };
        }
        Some(Error::value(format!("stage {}", worst.stage), message))
    }
}

/// The memory of a stage in each way. Training is planned once for each `micro_batch`, `recompute` and type of
/// optimizer state, evaluation once for each batch size.
pub(super) struct Needs<'a> {
    planner: &'a mut Planner,
    recipe: &'a Recipe,
    index: usize,
    setups: HashMap<usize, StageSetup>,
    train: HashMap<(usize, Recompute, DType), Need>,
    eval: HashMap<usize, Need>,
    /// Bytes that both keep between steps, with the recipe's optimizer state.
    common: Option<usize>,
}

impl Needs<'_> {
    pub(super) fn new<'a>(planner: &'a mut Planner, recipe: &'a Recipe, index: usize) -> Needs<'a> {
        Needs {
            planner,
            recipe,
            index,
            setups: HashMap::new(),
            train: HashMap::new(),
            eval: HashMap::new(),
            common: None,
        }
    }

    /// Whether batch norm uses the statistics of a pass.
    pub(super) fn sees_batch(&self, stage: &StageConfig) -> bool {
        stage.batch_norm == NormMode::Train && self.planner.has_batch_norm()
    }

    /// The setup for a `micro_batch`: the shapes of the buckets depend on it too.
    fn setup(&mut self, micro_batch: usize) -> Result<StageSetup> {
        if let Some(setup) = self.setups.get(&micro_batch) {
            return Ok(setup.clone());
        }
        let mut recipe = self.recipe.clone();
        let stage = &mut recipe.stages[self.index];
        stage.micro_batch = micro_batch;
        if !stage.images_per_step.is_multiple_of(micro_batch) {
            stage.images_per_step = micro_batch; // memory does not depend on it
        }
        let setup = self.planner.context(&recipe, self.index)?.setup;
        self.setups.insert(micro_batch, setup.clone());
        Ok(setup)
    }

    fn plan(&mut self, setup: &StageSetup) -> Result<Need> {
        let plans = StagePlans::trace(&mut self.planner.engine, setup)?;
        Ok(Need { kept: plans.persistent_bytes, arena: plans.arena_bytes() })
    }

    /// Training without evaluations, but with the evaluation outputs of one image.
    fn train(&mut self, way: Way) -> Result<Need> {
        let Way { micro_batch, recompute, state, .. } = way;
        let key = (micro_batch, recompute, state.dtype());
        if let Some(need) = self.train.get(&key) {
            return Ok(*need);
        }
        let mut setup = StageSetup { recompute, eval: Vec::new(), eval_batch: 1, ..self.setup(micro_batch)? };
        setup.optimizer.state = state;
        let need = self.plan(&setup)?;
        self.train.insert(key, need);
        Ok(need)
    }

    /// Evaluation without training passes, with the recipe's optimizer state.
    fn eval(&mut self, eval_batch: usize) -> Result<Need> {
        if let Some(need) = self.eval.get(&eval_batch) {
            return Ok(*need);
        }
        let any = self.recipe.stages[self.index].micro_batch;
        let setup = StageSetup { train: Vec::new(), eval_batch, ..self.setup(any)? };
        let need = self.plan(&setup)?;
        self.eval.insert(eval_batch, need);
        Ok(need)
    }

    /// Memory of the whole stage, the same as [`StagePlans::total_bytes`].
    fn of(&mut self, way: Way) -> Result<Need> {
        let common = match self.common {
            Some(common) => common,
            None => {
                let any = self.recipe.stages[self.index].micro_batch;
                let setup = StageSetup { train: Vec::new(), eval: Vec::new(), eval_batch: 1, ..self.setup(any)? };
                let common = self.plan(&setup)?.kept;
                self.common = Some(common);
                common
            }
        };
        let (train, eval) = (self.train(way)?, self.eval(way.eval_batch)?);
        Ok(Need { kept: train.kept + (eval.kept - common), arena: train.arena.max(eval.arena) })
    }

    /// The first of the ways, with the largest evaluation batch, that fits the budget.
    pub(super) fn first_that_fits(&mut self, ways: &[Way], budget: usize) -> Result<Option<Way>> {
        for way in ways {
            let train = self.train(*way)?;
            if train.total() > budget {
                continue; // training alone does not fit
            }
            for eval_batch in (1..=way.eval_batch).rev() {
                let way = Way { eval_batch, ..*way };
                if self.of(way)?.total() <= budget {
                    return Ok(Some(way));
                }
            }
        }
        Ok(None)
    }

    /// The way that needs least, and what it needs.
    fn least(&mut self, ways: &[Way]) -> Result<(Way, Need)> {
        let mut least: Option<(Way, Need)> = None;
        for way in ways {
            let train = self.train(*way)?;
            for eval_batch in 1..=way.eval_batch {
                let way = Way { eval_batch, ..*way };
                let need = self.of(way)?;
                if least.is_none_or(|(_, least)| need.total() < least.total()) {
                    least = Some((way, need));
                }
                if self.eval(eval_batch)?.arena <= train.arena {
                    break; // larger ones keep more and share the same arena
                }
            }
        }
        Ok(least.expect("a recipe that was checked has a micro_batch of at least 1"))
    }

    /// The message for a stage that no way makes fit.
    pub(super) fn too_little(&mut self, stage: &StageConfig, ways: &[Way], budget: Budget) -> Result<TooLittle> {
        let (way, need) = self.least(ways)?;
        let (kept, all) = (need.kept, need.total());
        let mut message = format!("needs at least {} ({all} bytes): {way}; {budget}", bytes(all));
        if budget.bytes() < kept {
            message += &format!(", less than the {} that stay between steps", bytes(kept));
        }
        let mut auto = None;
        if stage.optimizer.state == StatePrecision::F32 {
            let ways = ways_with(stage, self.sees_batch(stage), StatePrecision::Bf16);
            auto = Some(self.least(&ways)?.1.total()).filter(|bytes| *bytes < all);
        }
        Ok(TooLittle { stage: stage.name.clone(), least: all, auto, message })
    }

    /// The changes of `way` to a stage, in keys and in words.
    pub(super) fn explain(&mut self, stage: &StageConfig, way: Way, budget: Budget) -> Result<StageFit> {
        let Way { micro_batch, recompute, eval_batch, state } = way;
        let unchanged_bytes = self.of(Way::written(stage))?.total();
        let mut fit = StageFit { unchanged_bytes, ..StageFit::default() };
        let mut changed = |key, was: String, is: String| fit.changes.push(Change { key, was, is });
        if recompute != stage.recompute {
            changed("recompute", stage.recompute.name().into(), recompute.name().into());
        }
        if micro_batch != stage.micro_batch {
            changed("micro_batch", stage.micro_batch.to_string(), micro_batch.to_string());
        }
        let follows = stage.eval_batch.is_none() && eval_batch == micro_batch;
        if !follows && eval_batch != stage.eval_batch() {
            changed("eval_batch", stage.eval_batch().to_string(), eval_batch.to_string());
        }
        if state != stage.optimizer.state {
            changed(STATE, stage.optimizer.state.name().into(), state.name().into());
        }
        if fit.changes.is_empty() {
            return Ok(fit);
        }
        let said = |c: &Change| match c.key {
            "recompute" | STATE => format!("{} = {:?}, was {:?}", c.key, c.is, c.was),
            key => format!("{key} = {}, was {}", c.is, c.was),
        };
        let changes: Vec<_> = fit.changes.iter().map(said).collect();
        let (before, after) = (bytes(fit.unchanged_bytes), bytes(self.of(way)?.total()));
        let changes = changes.join("; ");
        fit.why.push(format!("{}: {changes}: it needs {after}, as written {before}; {budget}", stage.name));
        if micro_batch != stage.micro_batch && self.sees_batch(stage) {
            let (sees, instead) = (counted(micro_batch, "image"), stage.micro_batch);
            fit.why.push(format!(
                "{}: batch norm sees {sees} instead of {instead}: the result is not the recipe's",
                stage.name
            ));
        }
        if state != stage.optimizer.state {
            fit.why.push(format!(
                "{}: the optimizer's state is rounded to bf16, half its bytes, because nothing else fits: \
                 the result is not that of f32",
                stage.name
            ));
        }
        Ok(fit)
    }

    /// The largest `micro_batch` that fits with `recompute` and evaluation passes of one image; 0 if none does.
    pub(super) fn largest(&mut self, recompute: Recompute, budget: usize) -> Result<usize> {
        // An op may refuse tensors that are far larger than anyone trains with: such a batch does not fit either.
        let state = self.recipe.stages[self.index].optimizer.state;
        let mut fits = |micro_batch| {
            self.of(Way { micro_batch, recompute, eval_batch: 1, state }).is_ok_and(|n| n.total() <= budget)
        };
        let (mut fit, mut not) = (0, 1);
        while not <= MOST_IMAGES && fits(not) {
            (fit, not) = (not, 2 * not);
        }
        while not - fit > 1 && fit < MOST_IMAGES {
            let middle = fit.midpoint(not);
            if fits(middle) { fit = middle } else { not = middle }
        }
        Ok(fit)
    }
}
