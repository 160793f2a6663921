//! The memory of one stage, and the time that it is expected to take.
//!
//! Main type: [`StageReport`].

use std::rc::Rc;

use serde::Serialize;

use super::step::{StepInput, StepKind, StepReport};
use crate::data::Shape;
use crate::device::{StepPlan, Target};
use crate::engine::memory::PersistentBytes;
use crate::plan::budget::StageBudget;
use crate::plan::rates::Rate;
use crate::plan::{StageContext, StagePlans};
use crate::recipe::{NormMode, Recompute, StageConfig};
use crate::tensor::DType;

/// The memory of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageReport {
    /// Name.
    pub name: String,
    /// Optimizer steps.
    pub steps: u64,
    /// Images of an optimizer step.
    pub images_per_step: usize,
    /// Images of a forward and backward pass.
    pub micro_batch: usize,
    /// Passes of an optimizer step.
    pub passes_per_step: usize,
    /// Storage type of activations in training, with `auto` resolved.
    pub precision: &'static str,
    /// Storage type of optimizer state, with `auto` resolved.
    pub state_precision: &'static str,
    /// The outputs of the backbone that the backward pass rematerialises.
    pub recompute: Recompute,
    /// Mode of batch norm; `None` in a model without batch norm.
    pub batch_norm: Option<NormMode>,
    /// Number of images over which batch norm computes its statistics; `None` where it uses running statistics.
    pub batch_norm_images: Option<usize>,
    /// Room for the RLE runs of an image's masks; 0 without masks.
    pub mask_runs: usize,
    /// Bytes kept between steps, by kind.
    pub persistent: PersistentBytes,
    /// Sum of `persistent`.
    pub persistent_bytes: usize,
    /// Every step that the stage executes.
    pub plans: Vec<StepReport>,
    /// The arena, which all steps share: as large as the largest of them needs.
    pub arena_bytes: usize,
    /// Bytes that a run of the stage reserves: `persistent_bytes` and the arena.
    pub total_bytes: usize,
    /// Expected duration, if the same work has been measured before.
    pub expected: Option<ExpectedTime>,
    /// Changes that make it fit; `None` without a budget.
    pub budget: Option<StageBudget>,
}

/// The expected duration of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpectedTime {
    /// Seconds of all training steps, without evaluations.
    pub training_s: f64,
    /// The measured speed that it follows from.
    #[serde(flatten)]
    pub rate: Rate,
}

impl StageReport {
    /// The numbers of a stage's plans, without expected time and budget.
    pub(super) fn new(
        stage: &StageConfig,
        context: &StageContext,
        plans: &StagePlans,
        has_batch_norm: bool,
        target: Target,
    ) -> StageReport {
        let setup = &context.setup;
        let of = |step, images, buckets: &[Shape], plans: &[Rc<StepPlan>]| -> Vec<StepReport> {
            let input = |&bucket: &Shape| StepInput { images, bucket };
            buckets.iter().zip(plans).map(|(b, plan)| StepReport::new(step, Some(input(b)), plan)).collect()
        };
        let mut steps = of(StepKind::Train, setup.micro_batch, &setup.train, &plans.train);
        steps.extend(of(StepKind::Eval, setup.eval_batch, &setup.eval, &plans.eval));
        steps.push(StepReport::new(StepKind::Update, None, &plans.update));
        let batch_norm = has_batch_norm.then_some(stage.batch_norm);
        StageReport {
            name: stage.name.clone(),
            steps: context.schedule.total_steps(),
            images_per_step: stage.images_per_step,
            micro_batch: stage.micro_batch,
            passes_per_step: stage.accumulate(),
            precision: setup.dtype.name(),
            state_precision: setup.optimizer.state.dtype().name(),
            recompute: match setup.recompute {
                // There, ops in 16 bits save their inputs and nothing else.
                Recompute::Norms if target == Target::Cpu && setup.dtype != DType::F32 => Recompute::None,
                // Frozen batch norm saves its output and nothing else.
                Recompute::Norms if batch_norm == Some(NormMode::Frozen) => Recompute::None,
                how => how,
            },
            batch_norm,
            batch_norm_images: batch_norm.filter(|m| *m == NormMode::Train).map(|_| stage.micro_batch),
            mask_runs: setup.mask_runs,
            persistent: plans.persistent,
            persistent_bytes: plans.persistent_bytes,
            plans: steps,
            arena_bytes: plans.arena_bytes(),
            total_bytes: plans.total_bytes(),
            expected: None,
            budget: None,
        }
    }
}
