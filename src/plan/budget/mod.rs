//! Fits the stages of a recipe into a number of bytes, by planning them in other ways until one fits. Nothing is trained here.
//!
//! A stage needs what stays between its steps and the arena of its largest step: all that its plans say. Main function: [`fit`].

mod limit;
mod needs;

use std::fmt;
use std::num::IntErrorKind;
use std::str::FromStr;

use serde::Serialize;

pub use limit::{Budget, Change, MOST_IMAGES, StageFit};

use self::needs::{Needs, STATE, TooLittle, ways};
use super::Planner;
use crate::error::{Error, Result};
use crate::format::bytes;
use crate::recipe::{Recipe, Recompute, StageConfig};

/// A number of bytes as a user writes it: `11GiB`, `11GB`, `1.5 GiB`, `12000MiB`, or bytes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub usize);

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
        let factor: u64 = match unit.trim_start() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err("want a number of bytes, KiB, MiB, GiB, TiB, kB, MB, GB or TB, such as 11GiB".into()),
        };
        let parts = number.split_once('.');
        let (whole, fraction) = parts.unwrap_or((number, "0"));
        // Nine digits are more than anyone means; a fraction of a byte is nothing.
        if fraction.is_empty() || fraction.len() > 9 || (factor == 1 && parts.is_some()) {
            return Err("want a number such as 11GiB, 1.5GiB or 12000000000".into());
        }
        let digits = |text: &str| match text.parse::<u128>() {
            Err(error) if *error.kind() == IntErrorKind::PosOverflow => Ok(u128::MAX),
            other => other.map_err(|_| "want a number such as 11GiB or 1.5GiB".to_string()),
        };
        let part = digits(fraction)? * u128::from(factor) / 10_u128.pow(fraction.len() as u32);
        let all = digits(whole)?.checked_mul(factor.into()).and_then(|bytes| bytes.checked_add(part));
        match all.and_then(|bytes| usize::try_from(bytes).ok()) {
            None => Err("more than this machine can count".into()),
            Some(0) => Err("want more than 0 bytes".into()),
            Some(bytes) => Ok(MemorySize(bytes)),
        }
    }
}

/// What a budget made of a recipe.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The recipe, changed in its stages.
    pub recipe: Recipe,
    /// One for each stage.
    pub stages: Vec<StageFit>,
}

impl Fitted {
    /// What to tell the user.
    pub fn notes(&self) -> impl Iterator<Item = &String> {
        self.stages.iter().flat_map(|stage| &stage.why)
    }
}

/// Largest numbers of images of a pass that fit a budget, whatever `images_per_step` is; up to [`MOST_IMAGES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Largest {
    /// With the recipe's `recompute`.
    pub micro_batch: usize,
    /// With `recompute = "blocks"`.
    pub micro_batch_recompute: usize,
}

/// What a plan says of a stage and a budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageBudget {
    /// The budget: the report has it already.
    #[serde(skip)]
    pub bytes: usize,
    /// What was changed.
    #[serde(flatten)]
    pub fit: StageFit,
    /// What would fit.
    pub largest: Largest,
}

impl fmt::Display for StageBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fit.why.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        let count = |n: usize| match n {
            0 => "none".into(),
            MOST_IMAGES => format!("{n} or more"),
            n => n.to_string(),
        };
        let Largest { micro_batch, micro_batch_recompute } = self.largest;
        write!(f, "\n  largest batch that fits {}: {}", bytes(self.bytes), count(micro_batch))?;
        write!(f, ", with recompute {}", count(micro_batch_recompute))
    }
}

/// Changes each stage as little as it takes to fit the budget. Ways are tried in the order of the time that they cost:
///
/// 1. the recipe as it is;
/// 2. smaller batches in evaluation, which change no result: tried with each of the following ways too, largest first, before
///    training is changed any further;
/// 3. `recompute = "norms"`, one more pass over the outputs of batch norm, or of layer norm and GELU, for the same bits;
/// 4. where batch norm takes the statistics of a pass (`batch_norm = "train"` in a model that has it): `recompute = "blocks"`, which
///    gives the same bits too, for a fifth to a third more time; then each smaller divisor of `images_per_step` as `micro_batch`,
///    largest first, with each `recompute`, so that batch norm sees as many images as fit;
/// 5. else: the smaller `micro_batch`es, which cost next to no time, without and then with "norms"; then the recipe's, and the
///    smaller ones again, with "blocks";
/// 6. where the recipe says `optimizer.state = "auto"`: all of these again, in their order, with "bf16", which is last because it
///    gives another result wherever it is.
///
/// `recompute` is never less than the recipe's.
/// `images_per_step` and learning rates stay. A smaller `micro_batch` is another recipe to the bit: losses are means over a pass, and
/// passes of pictures of many shapes are put together otherwise. Without a budget nothing is changed.
///
/// Errors: `Value` if a stage fits in no way. It names the smallest budget with which every stage fits, and a smaller one that
/// `optimizer.state = "auto"` would do with.
pub fn fit(planner: &mut Planner, recipe: &Recipe, budget: Option<Budget>) -> Result<Fitted> {
    fit_from(planner, recipe, budget, None)
}

/// For a run that goes on in stage `first`: Err if a stage from there on does not fit as the recipe has it. A run goes on as it
/// began, unless the user says otherwise.
///
/// Errors: `Value` that names what would make it fit; as [`fit`] where nothing would.
pub fn check(planner: &mut Planner, recipe: &Recipe, budget: Budget, first: usize) -> Result<()> {
    let fitted = fit_from(planner, recipe, Some(budget), Some(first))?;
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

/// `resumed`: the stage that a run goes on in.
fn fit_from(planner: &mut Planner, recipe: &Recipe, budget: Option<Budget>, resumed: Option<usize>) -> Result<Fitted> {
    let mut fitted = Fitted { recipe: recipe.clone(), stages: vec![StageFit::default(); recipe.stages.len()] };
    let Some(budget) = budget else { return Ok(fitted) };
    let mut too_little: Vec<TooLittle> = Vec::new();
    for (index, stage) in recipe.stages.iter().enumerate().skip(resumed.unwrap_or(0)) {
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
    // A run that goes on is not told of another recipe that would fit: it would be refused that as well.
    let hints = resumed.is_none();
    TooLittle::error(&too_little, hints.then_some(budget.bytes())).map_or(Ok(fitted), Err)
}

/// The largest passes of stage `index` that fit a budget, where evaluations may be as small as one image.
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
