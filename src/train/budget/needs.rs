//! What a stage needs, in every way that it may be run; each part is planned once.

use std::collections::HashMap;
use std::fmt;

use super::{Budget, Change, MOST_IMAGES, StageFit};
use crate::error::{Error, Result};
use crate::output::counted;
use crate::train::engine::StageSetup;
use crate::train::plans::{Planner, StagePlans};
use crate::train::progress::bytes;
use crate::train::recipe::{BatchNormMode, Recipe, Recompute, StageConfig};

/// A way to run a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    micro_batch: usize,
    recompute: Recompute,
    /// At most so many images in an evaluation pass.
    eval_batch: usize,
}

impl Way {
    pub(super) fn apply(self, stage: &mut StageConfig) {
        stage.micro_batch = self.micro_batch;
        stage.recompute = self.recompute;
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
        if self.eval_batch < self.micro_batch { write!(f, " and eval_batch = {}", self.eval_batch) } else { Ok(()) }
    }
}

/// Ways to train a stage, cheapest first ([`super::fit`]), each with the largest evaluation batch that may go with it.
pub(super) fn ways(stage: &StageConfig, sees_batch: bool) -> Vec<Way> {
    let images = stage.images_per_step;
    let batches: Vec<usize> = (1..=stage.micro_batch).rev().filter(|n| images.is_multiple_of(*n)).collect();
    let recomputes = Recompute::ALL.into_iter().skip_while(|r| *r != stage.recompute);
    // Those that are tried with every batch before the next ones are with any.
    let (cheap, dear): (Vec<_>, Vec<_>) = recomputes.partition(|r| sees_batch || *r != Recompute::Blocks);
    let way = |micro_batch: usize, recompute: Recompute| {
        let changed = StageConfig { micro_batch, ..stage.clone() };
        Way { micro_batch, recompute, eval_batch: changed.eval_batch() }
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

/// What a stage needs in each way, planned once: training by `micro_batch` and `recompute`, evaluation by its batch.
pub(super) struct Needs<'a> {
    planner: &'a mut Planner,
    recipe: &'a Recipe,
    index: usize,
    setups: HashMap<usize, StageSetup>,
    train: HashMap<(usize, Recompute), Need>,
    eval: HashMap<usize, Need>,
    /// What both keep.
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
    fn train(&mut self, micro_batch: usize, recompute: Recompute) -> Result<Need> {
        if let Some(need) = self.train.get(&(micro_batch, recompute)) {
            return Ok(*need);
        }
        let setup = StageSetup { recompute, eval: Vec::new(), eval_batch: 1, ..self.setup(micro_batch)? };
        let need = self.plan(&setup)?;
        self.train.insert((micro_batch, recompute), need);
        Ok(need)
    }

    /// Without training passes.
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
        let (train, eval) = (self.train(way.micro_batch, way.recompute)?, self.eval(way.eval_batch)?);
        let kept = train.kept + eval.kept - common;
        Ok((kept, kept + train.arena.max(eval.arena)))
    }

    pub(super) fn first_that_fits(&mut self, ways: &[Way], budget: usize) -> Result<Option<Way>> {
        for way in ways {
            let train = self.train(way.micro_batch, way.recompute)?;
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

    /// The least that the stage needs, and the error that says so.
    pub(super) fn too_little(&mut self, stage: &StageConfig, ways: &[Way], budget: Budget) -> Result<(usize, Error)> {
        let mut least: Option<(usize, usize, Way)> = None;
        for way in ways {
            let train = self.train(way.micro_batch, way.recompute)?;
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
        let (kept, all, way) = least.expect("a recipe that was checked has a micro_batch of at least 1");
        let mut message = format!("needs at least {} ({all} bytes): {way}; {budget}", bytes(all));
        if budget.bytes() < kept {
            message += &format!(", less than the {} that stay between steps", bytes(kept));
        }
        Ok((all, Error::value(format!("stage {}", stage.name), message)))
    }

    pub(super) fn explain(&mut self, stage: &StageConfig, way: Way, budget: Budget) -> Result<StageFit> {
        let Way { micro_batch, recompute, eval_batch } = way;
        let unchanged =
            Way { micro_batch: stage.micro_batch, recompute: stage.recompute, eval_batch: stage.eval_batch() };
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
        if fit.changes.is_empty() {
            return Ok(fit);
        }
        let said = |c: &Change| match c.key {
            "recompute" => format!("{} = {:?}, was {:?}", c.key, c.is, c.was),
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
        Ok(fit)
    }

    pub(super) fn largest(&mut self, recompute: Recompute, budget: usize) -> Result<usize> {
        // An op may refuse a tensor as large as nobody trains with: such a batch does not fit either.
        let mut fits =
            |micro_batch| self.of(Way { micro_batch, recompute, eval_batch: 1 }).is_ok_and(|n| n.1 <= budget);
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
