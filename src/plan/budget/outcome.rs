//! What fitting a recipe into a budget leads to: the changed keys of each stage, and the largest batches that would
//! fit.
//!
//! Main types: [`Fitted`], [`StageFit`], [`StageBudget`].

use std::fmt;

use serde::Serialize;

use crate::format::bytes;
use crate::recipe::Recipe;

/// The largest batch that the search for [`Largest`] tries.
pub const MOST_IMAGES: usize = 1024;

/// A recipe that was fitted into a budget.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The recipe with its stages changed.
    pub recipe: Recipe,
    /// One entry for each stage.
    pub stages: Vec<StageFit>,
}

impl Fitted {
    /// Lines for the user.
    pub fn notes(&self) -> impl Iterator<Item = &String> {
        self.stages.iter().flat_map(|stage| &stage.why)
    }
}

/// Changes to a stage that make it fit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageFit {
    /// Bytes that the stage needs as the recipe describes it.
    pub unchanged_bytes: usize,
    /// Keys of the stage that were changed.
    pub changes: Vec<Change>,
    /// The changes in words: what was changed, why, and what it costs.
    pub why: Vec<String>,
}

/// A key of a stage with another value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The key: `micro_batch`, `recompute`, `eval_batch` or `optimizer.state`.
    pub key: &'static str,
    /// The recipe's value.
    pub was: String,
    /// The run's value.
    pub is: String,
}

/// The most images in a pass that fit a budget, up to [`MOST_IMAGES`] and independent of `images_per_step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Largest {
    /// With the recipe's `recompute`.
    pub micro_batch: usize,
    /// With `recompute = "blocks"`.
    pub micro_batch_recompute: usize,
}

/// A stage's part of a plan that was made for a budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageBudget {
    /// The budget. Not serialised: the report has it at its top.
    #[serde(skip)]
    pub bytes: usize,
    /// Changes to the stage.
    #[serde(flatten)]
    pub fit: StageFit,
    /// The largest batches that would fit.
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
