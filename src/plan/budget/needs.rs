//! What a stage needs, in every way that it may be run; each part is planned once.

use std::collections::HashMap;
use std::fmt;

use super::limit::{Budget, Change, MOST_IMAGES, StageFit};
use crate::engine::StageSetup;
use crate::error::{Error, Result};
use crate::format::bytes;
use crate::format::counted;
use crate::plan::{Planner, StagePlans};
use crate::recipe::{BatchNormMode, Recipe, Recompute, StageConfig, StatePrecision};
use crate::tensor::DType;

/// A way to run a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    micro_batch: usize,
    recompute: Recompute,
    /// At most so many images in an evaluation pass.
    eval_batch: usize,
    /// As in the recipe, or bf16 in place of auto.
    state: StatePrecision,
}

impl Way {
    pub(super) fn apply(self, stage: &mut StageConfig) {
        stage.micro_batch = self.micro_batch;
        stage.recompute = self.recompute;
        stage.optimizer.state = self.state;
        if stage.eval_batch() != self.eval_batch {
            stage.eval_batch = Some(self.eval_batch);
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "micro_batch = {}", self.micro_batch)?;
        if self.recompute != Recompute::None {
            write!(f, " with recompute = {:?}", self.recompute.name())?;
        }
        if self.state == StatePrecision::Bf16 {
            write!(f, ", {STATE} = {:?}", self.state.name())?;
        }
        if self.eval_batch < self.micro_batch { write!(f, " and eval_batch = {}", self.eval_batch) } else { Ok(()) }
    }
}

/// The key of [`Way::state`].
pub(super) const STATE: &str = "optimizer.state";

/// Ways to train a stage, cheapest first ([`crate::plan::budget::fit`]), each with the largest evaluation batch that may go with it.
pub(super) fn ways(stage: &StageConfig, sees_batch: bool) -> Vec<Way> {
    let written = stage.optimizer.state;
    let states = if written == StatePrecision::Auto { &[written, StatePrecision::Bf16][..] } else { &[written] };
    states.iter().flat_map(|&state| ways_with(stage, sees_batch, state)).collect()
}

/// Those with optimizer state that is stored so.
fn ways_with(stage: &StageConfig, sees_batch: bool, state: StatePrecision) -> Vec<Way> {
    let images = stage.images_per_step;
    let batches: Vec<usize> = (1..=stage.micro_batch).rev().filter(|n| images.is_multiple_of(*n)).collect();
    let recomputes = Recompute::ALL.into_iter().skip_while(|r| *r != stage.recompute);
    // Those that are tried with every batch before the next ones are with any.
    let (cheap, dear): (Vec<_>, Vec<_>) = recomputes.partition(|r| sees_batch || *r != Recompute::Blocks);
    let way = |micro_batch: usize, recompute: Recompute| {
        let changed = StageConfig { micro_batch, ..stage.clone() };
        Way { micro_batch, recompute, eval_batch: changed.eval_batch(), state }
    };
    let with = |recomputes: &[Recompute]| -> Vec<Way> {
        batches.iter().flat_map(|&batch| recomputes.iter().map(move |&r| (batch, r))).map(|(b, r)| way(b, r)).collect()
    };
    [with(&cheap), with(&dear)].concat()
}

/// What a part of a stage needs.
#[derive(Clone, Copy)]
struct Need {
    /// Between steps.
    kept: usize,
    /// In the largest step.
    arena: usize,
}

/// A stage that fits in no way.
pub(super) struct TooLittle {
    stage: String,
    /// What it needs at least.
    pub(super) least: usize,
    /// The same with `optimizer.state = "auto"` in place of f32, if that is less.
    auto: Option<usize>,
    message: String,
}

impl TooLittle {
    /// The error of the stage that needs most of `all` that do not fit, where the others fit the budget: what would be enough for
    /// all. With a `budget`, also whether `optimizer.state = "auto"` would need less.
    pub(super) fn error(all: &[TooLittle], budget: Option<usize>) -> Option<Error> {
        let worst = all.iter().rev().max_by_key(|stage| stage.least)?;
        let mut message = worst.message.clone();
        let auto = all.iter().map(|stage| stage.auto.unwrap_or(stage.least)).max()?;
        if let Some(budget) = budget.filter(|_| auto < worst.least) {
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

/// What a stage needs in each way, planned once: training by `micro_batch`, `recompute` and the type of optimizer state, evaluation by
/// its batch.
pub(super) struct Needs<'a> {
    planner: &'a mut Planner,
    recipe: &'a Recipe,
    index: usize,
    setups: HashMap<usize, StageSetup>,
    train: HashMap<(usize, Recompute, DType), Need>,
    eval: HashMap<usize, Need>,
    /// What both keep, with optimizer state as the recipe has it.
    common: Option<usize>,
}

impl Needs<'_> {
    pub(super) fn new<'a>(planner: &'a mut Planner, recipe: &'a Recipe, index: usize) -> Needs<'a> {
        let (setups, train, eval) = Default::default();
        Needs { planner, recipe, index, setups, train, eval, common: None }
    }

    /// Whether batch norm takes the statistics of a pass.
    pub(super) fn sees_batch(&self, stage: &StageConfig) -> bool {
        stage.batch_norm == BatchNormMode::Train && self.planner.has_batch_norm()
    }

    /// Shapes depend on the number of images too.
    fn setup(&mut self, micro_batch: usize) -> Result<StageSetup> {
        if let Some(setup) = self.setups.get(&micro_batch) {
            return Ok(setup.clone());
        }
        let mut recipe = self.recipe.clone();
        let stage = &mut recipe.stages[self.index];
        stage.micro_batch = micro_batch;
        if !stage.images_per_step.is_multiple_of(micro_batch) {
            stage.images_per_step = micro_batch; // of no account for memory
        }
        let setup = self.planner.context(&recipe, self.index)?.setup;
        self.setups.insert(micro_batch, setup.clone());
        Ok(setup)
    }

    fn plan(&mut self, setup: &StageSetup) -> Result<Need> {
        let plans = StagePlans::trace(&mut self.planner.engine, setup)?;
        Ok(Need { kept: plans.persistent_bytes, arena: plans.arena_bytes() })
    }

    /// Without evaluations, but with the outputs of one image.
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

    /// Without training passes, with optimizer state as the recipe has it.
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

    /// What stays between steps, and in all: as [`StagePlans::total_bytes`].
    fn of(&mut self, way: Way) -> Result<(usize, usize)> {
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
        let kept = train.kept + (eval.kept - common);
        Ok((kept, kept + train.arena.max(eval.arena)))
    }

    pub(super) fn first_that_fits(&mut self, ways: &[Way], budget: usize) -> Result<Option<Way>> {
        for way in ways {
            let train = self.train(*way)?;
            if train.kept + train.arena > budget {
                continue; // whatever evaluation needs
            }
            for eval_batch in (1..=way.eval_batch).rev() {
                let way = Way { eval_batch, ..*way };
                if self.of(way)?.1 <= budget {
                    return Ok(Some(way));
                }
            }
        }
        Ok(None)
    }

    /// The way that needs least: what stays between steps, what it needs in all.
    fn least(&mut self, ways: &[Way]) -> Result<(usize, usize, Way)> {
        let mut least: Option<(usize, usize, Way)> = None;
        for way in ways {
            let train = self.train(*way)?;
            for eval_batch in 1..=way.eval_batch {
                let way = Way { eval_batch, ..*way };
                let (kept, all) = self.of(way)?;
                if least.is_none_or(|(_, least, _)| all < least) {
                    least = Some((kept, all, way));
                }
                if self.eval(eval_batch)?.arena <= train.arena {
                    break; // larger ones keep more and share the same arena
                }
            }
        }
        Ok(least.expect("a recipe that was checked has a micro_batch of at least 1"))
    }

    /// What is to be said of a stage that no way fits.
    pub(super) fn too_little(&mut self, stage: &StageConfig, ways: &[Way], budget: Budget) -> Result<TooLittle> {
        let (kept, all, way) = self.least(ways)?;
        let mut message = format!("needs at least {} ({all} bytes): {way}; {budget}", bytes(all));
        if budget.bytes() < kept {
            message += &format!(", less than the {} that stay between steps", bytes(kept));
        }
        let mut auto = None;
        if stage.optimizer.state == StatePrecision::F32 {
            let ways = ways_with(stage, self.sees_batch(stage), StatePrecision::Bf16);
            auto = Some(self.least(&ways)?.1).filter(|bytes| *bytes < all);
        }
        Ok(TooLittle { stage: stage.name.clone(), least: all, auto, message })
    }

    pub(super) fn explain(&mut self, stage: &StageConfig, way: Way, budget: Budget) -> Result<StageFit> {
        let Way { micro_batch, recompute, eval_batch, state } = way;
        let unchanged = Way {
            micro_batch: stage.micro_batch,
            recompute: stage.recompute,
            eval_batch: stage.eval_batch(),
            state: stage.optimizer.state,
        };
        let mut fit = StageFit { unchanged_bytes: self.of(unchanged)?.1, ..StageFit::default() };
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
        let (before, after) = (bytes(fit.unchanged_bytes), bytes(self.of(way)?.1));
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
                "{}: the optimizer's state is rounded to bf16, half its bytes, because nothing else fits: the result is not that of f32",
                stage.name
            ));
        }
        Ok(fit)
    }

    pub(super) fn largest(&mut self, recompute: Recompute, budget: usize) -> Result<usize> {
        // An op may refuse a tensor as large as nobody trains with: such a batch does not fit either.
        let state = self.recipe.stages[self.index].optimizer.state;
        let mut fits =
            |micro_batch| self.of(Way { micro_batch, recompute, eval_batch: 1, state }).is_ok_and(|n| n.1 <= budget);
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
