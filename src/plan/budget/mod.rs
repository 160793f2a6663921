//! Fits the stages of a recipe into a number of bytes: plans each stage in other ways until one fits.
//!
//! Not for training, and not for the plans themselves ([`super::StagePlans`]). A stage needs the memory that stays
//! between its steps plus the arena of its largest step; both are in its plans. Main function: [`fit`]. Read `ways.rs`
//! next (the ways that are tried, in their order), then `needs.rs` (the memory that each takes); `limit.rs` has the
//! budget, `outcome.rs` the results.

mod limit;
mod needs;
mod outcome;
mod ways;

use self::needs::{Needs, TooLittle};
use self::ways::{STATE, ways};
use super::Planner;
use crate::error::{Error, Result};
use crate::format::bytes;
use crate::recipe::{Recipe, Recompute, StageConfig};

pub use self::limit::{Budget, MemorySize};
pub use self::outcome::{Change, Fitted, Largest, MOST_IMAGES, StageBudget, StageFit};

/// Changes each stage as little as necessary to fit the budget. Ways are tried in the order of the time that they cost:
///
/// 1. the recipe as it is;
/// 2. smaller evaluation batches, which change no result: combined with each of the following ways, largest first,
///    before training is changed any further;
/// 3. `recompute = "norms"`: one more pass over the outputs of batch norm, or of layer norm and GELU, for the same
///    bits;
/// 4. where batch norm uses the statistics of a pass (`batch_norm = "train"` in a model that has batch norm):
///    `recompute = "blocks"`, which also gives the same bits, for a fifth to a third more time; then each smaller
///    divisor of `images_per_step` as `micro_batch`, largest first, with each `recompute`, so that batch norm sees as
///    many images as fit;
/// 5. otherwise: each smaller `micro_batch`, which costs next to no time, without and then with "norms"; then the
///    recipe's `micro_batch` and the smaller ones again, with "blocks";
/// 6. where the recipe says `optimizer.state = "auto"`: all of these again, in the same order, with "bf16". It is last
///    because it changes the result.
///
/// `recompute` never becomes less than the recipe's. `images_per_step` and learning rates stay. A smaller `micro_batch`
/// does not give the same bits: losses are means over a pass, and images of many shapes are grouped into passes
/// differently. Without a budget nothing is changed.
///
/// Errors: `Value` if no way makes a stage fit. It names the smallest budget that fits every stage, and a smaller one
/// that would be enough with `optimizer.state = "auto"`.
pub fn fit(planner: &mut Planner, recipe: &Recipe, budget: Option<Budget>) -> Result<Fitted> {
    match budget {
        Some(budget) => fit_from(planner, recipe, budget, Begin::Anew),
        None => Ok(unchanged(recipe)),
    }
}

/// Checks a run that is resumed in stage `first`: this stage and the later ones must fit as the recipe has them,
/// because a run goes on as it began unless the user says otherwise.
///
/// Errors: `Value` that names the settings that would make it fit; like [`fit`] where none would.
pub fn check(planner: &mut Planner, recipe: &Recipe, budget: Budget, first: usize) -> Result<()> {
    let fitted = fit_from(planner, recipe, budget, Begin::Resumed(first))?;
    let changed = || recipe.stages.iter().zip(&fitted.stages).filter(|(_, fit)| !fit.changes.is_empty());
    let Some((stage, fit)) = changed().max_by_key(|(_, fit)| fit.unchanged_bytes) else { return Ok(()) };
    let of = |(stage, fit): (&StageConfig, &StageFit)| {
        fit.changes.iter().map(|c| format!("--set stage.{}.{}={}", stage.name, c.key, c.is)).collect::<Vec<_>>()
    };
    let mut message = format!(
        "needs {}, {budget}, and a run goes on as it began: leave --memory out, or add {}",
        bytes(fit.unchanged_bytes),
        changed().flat_map(of).collect::<Vec<_>>().join(" ")
    );
    let other = |key| changed().any(|(_, fit)| fit.changes.iter().any(|c| c.key == key));
    for key in ["micro_batch", STATE].into_iter().filter(|key| other(*key)) {
        message += &format!(" (another {key} is another recipe: its result is not that of the run that began)");
    }
    Err(Error::value(format!("stage {}", stage.name), message))
}

/// Where a run begins.
#[derive(Clone, Copy)]
enum Begin {
    Anew,
    /// In this stage.
    Resumed(usize),
}

fn unchanged(recipe: &Recipe) -> Fitted {
    Fitted { recipe: recipe.clone(), stages: vec![StageFit::default(); recipe.stages.len()] }
}

fn fit_from(planner: &mut Planner, recipe: &Recipe, budget: Budget, begin: Begin) -> Result<Fitted> {
    let mut fitted = unchanged(recipe);
    let first = match begin {
        Begin::Anew => 0,
        Begin::Resumed(stage) => stage,
    };
    let mut too_little: Vec<TooLittle> = Vec::new();
    for (index, stage) in recipe.stages.iter().enumerate().skip(first) {
        let mut needs = Needs::new(planner, recipe, index);
        let ways = ways(stage, needs.sees_batch(stage));
        match needs.first_that_fits(&ways, budget.bytes())? {
            Some(way) => {
                fitted.stages[index] = needs.explain(stage, way, budget)?;
                way.apply(&mut fitted.recipe.stages[index]);
            }
            None => too_little.push(needs.too_little(stage, &ways, budget)?),
        }
    }
    // A resumed run gets no hint at another recipe that would fit: it would be refused too.
    let hint_budget = matches!(begin, Begin::Anew).then_some(budget.bytes());
    TooLittle::error(&too_little, hint_budget).map_or(Ok(fitted), Err)
}

/// The largest training passes of stage `index` that fit a budget. Its evaluation passes may be as small as one image.
pub fn largest(planner: &mut Planner, recipe: &Recipe, index: usize, budget: Budget) -> Result<Largest> {
    let mut needs = Needs::new(planner, recipe, index);
    let kept = recipe.stages[index].recompute;
    let micro_batch = needs.largest(kept, budget.bytes())?;
    let micro_batch_recompute = match kept {
        Recompute::Blocks => micro_batch,
        _ => needs.largest(Recompute::Blocks, budget.bytes())?,
    };
    Ok(Largest { micro_batch, micro_batch_recompute })
}
