//! Ways to run a stage in less memory, in the order in which they are tried.
//!
//! Main type: [`Way`].

use std::fmt;

use crate::recipe::{Recompute, StageConfig, StatePrecision};

/// The key of [`Way::state`].
pub(super) const STATE: &str = "optimizer.state";

/// A way to run a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) micro_batch: usize,
    pub(super) recompute: Recompute,
    /// The most images in an evaluation pass.
    pub(super) eval_batch: usize,
    /// The recipe's, or bf16 where the recipe says auto.
    pub(super) state: StatePrecision,
}

impl Way {
    /// The way that a recipe describes.
    pub(super) fn written(stage: &StageConfig) -> Way {
        Way {
            micro_batch: stage.micro_batch,
            recompute: stage.recompute,
            eval_batch: stage.eval_batch(),
            state: stage.optimizer.state,
        }
    }

    /// Writes the way into a stage.
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

/// Ways to train a stage in the order of [`crate::plan::budget::fit`], each with the largest evaluation batch allowed
/// for it. `sees_batch`: batch norm uses the statistics of a pass, so that the result depends on `micro_batch`.
pub(super) fn ways(stage: &StageConfig, sees_batch: bool) -> Vec<Way> {
    let written = stage.optimizer.state;
    let states = if written == StatePrecision::Auto { &[written, StatePrecision::Bf16][..] } else { &[written] };
    states.iter().flat_map(|&state| ways_with(stage, sees_batch, state)).collect()
}

/// The ways that store optimizer state as `state`.
pub(super) fn ways_with(stage: &StageConfig, sees_batch: bool, state: StatePrecision) -> Vec<Way> {
    let images = stage.images_per_step;
    let batches: Vec<usize> = (1..=stage.micro_batch).rev().filter(|n| images.is_multiple_of(*n)).collect();
    let recomputes = Recompute::ALL.into_iter().skip_while(|r| *r != stage.recompute);
    // Every batch size is tried with cheap modes before any with dear ones.
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
