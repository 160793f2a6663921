//! The report of `train --plan`: the memory that each stage of a recipe needs, and for which purposes, before anything
//! is trained.
//!
//! Not for planning ([`super::Planner`]) nor for fitting a budget ([`super::budget`]): here their results become
//! numbers with names. Sizes are bytes. Main type: [`PlanReport`]; [`PlanReport::to_json`] writes it for programs,
//! `Display` for people. Read `stage.rs` next, then `step.rs`; `text.rs` has the text.

mod stage;
mod step;
mod text;

use serde::Serialize;

use super::Planner;
use super::budget::{self, Budget, Fitted, StageBudget};
use super::rates::Rates;
use crate::device::Target;
use crate::engine::feed::RunData;
use crate::error::Result;
use crate::recipe::Recipe;

pub use self::stage::{ExpectedTime, StageReport};
pub use self::step::{LiveGroup, LiveKind, StepKind, StepReport};

/// The memory of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanReport {
    /// Name of the recipe.
    pub recipe: String,
    /// The device that is planned for: "cpu", "cuda" or "sim".
    pub device: &'static str,
    /// Bytes that each stage was fitted into; `None` without a budget.
    pub budget_bytes: Option<usize>,
    /// The properties of the data that memory depends on.
    pub data: DataReport,
    /// One entry for each stage.
    pub stages: Vec<StageReport>,
    /// Bytes needed by the largest stage.
    pub needed_bytes: usize,
    /// Notes in words: data that is left out, and what these numbers include and exclude.
    pub notes: Vec<String>,
}

/// The worst case of the training data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataReport {
    /// Training images.
    pub images: usize,
    /// Classes.
    pub classes: usize,
    /// Largest number of ground-truth boxes in one image.
    pub max_objects: usize,
    /// File name of that image, the first one of several; `None` without ground truth.
    pub max_objects_image: Option<String>,
    /// Room for ground-truth boxes in each image.
    pub gt_slots: usize,
    /// Largest network input of all stages.
    pub largest_input: Option<LargestInput>,
}

/// The network input with the most pixels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LargestInput {
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
    /// The first stage that has it.
    pub stage: String,
}

impl PlanReport {
    /// Plans every stage for the planner's device, changed to fit the budget if there is one. The expected times come
    /// from `rates`.
    pub fn new(planner: &mut Planner, recipe: &Recipe, budget: Option<Budget>, rates: &Rates) -> Result<PlanReport> {
        let target = planner.target();
        let has_batch_norm = planner.has_batch_norm();
        let Fitted { recipe: fitted, stages: fits } = budget::fit(planner, recipe, budget)?;
        let mut stages = Vec::with_capacity(recipe.stages.len());
        for ((index, stage), fit) in fitted.stages.iter().enumerate().zip(fits) {
            let (context, plans) = planner.stage(&fitted, index)?;
            let mut report = StageReport::new(stage, &context, &plans, has_batch_norm, target);
            if let Some(budget) = budget {
                let mut asked = recipe.clone();
                asked.stages[index].optimizer.state = stage.optimizer.state;
                let largest = budget::largest(planner, &asked, index, budget)?;
                report.budget = Some(StageBudget { bytes: budget.bytes(), fit, largest });
            }
            let rate = rates.of(&fitted, stage, target, rayon::current_num_threads());
            report.expected = rate.map(|rate| ExpectedTime {
                training_s: (report.steps * report.images_per_step as u64) as f64 / rate.images_per_s,
                rate,
            });
            stages.push(report);
        }
        Ok(PlanReport {
            recipe: recipe.name.clone(),
            device: match target {
                Target::Cpu => "cpu",
                Target::Sim => "sim",
                Target::Cuda => "cuda",
            },
            budget_bytes: budget.map(Budget::bytes),
            data: DataReport::new(&planner.data, &stages)?,
            needed_bytes: stages.iter().map(|s| s.total_bytes).max().unwrap_or(0),
            notes: planner.data.notes().into_iter().chain(notes(target)).collect(),
            stages,
        })
    }

    /// The report as one JSON document; its keys are the names of the fields.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plan: numbers and text")
    }
}

impl DataReport {
    fn new(data: &RunData, stages: &[StageReport]) -> Result<DataReport> {
        let dataset = data.train.dataset();
        let objects = |image: &usize| dataset.ground_truth(*image).count();
        // The first image with the most boxes; `Dataset::max_gt` rounds this number up.
        let most = (0..dataset.images.len()).rev().max_by_key(objects).filter(|i| objects(i) > 0);
        let inputs = stages.iter().rev().flat_map(|s| s.plans.iter().rev().map(move |p| (s, p)));
        let input = |(s, p): (&StageReport, &StepReport)| {
            Some(LargestInput { height: p.height?, width: p.width?, stage: s.name.clone() })
        };
        Ok(DataReport {
            images: dataset.training_images(data.filter)?.len(),
            classes: dataset.categories.len(),
            max_objects: most.as_ref().map_or(0, objects),
            max_objects_image: most.map(|i| dataset.images[i].file_name.clone()),
            gt_slots: data.max_gt,
            largest_input: inputs.filter_map(input).max_by_key(|input| input.height * input.width),
        })
    }
}

/// What the numbers of a target include and exclude.
fn notes(target: Target) -> Vec<String> {
    let notes: &[&str] = match target {
        Target::Cpu => &["on top: the program, batches made ahead, and decoded images where data.cache_mib keeps them"],
        Target::Sim => {
            &["on top: the guard bands of the simulated device, and what a run on the CPU needs beside its plan"]
        }
        Target::Cuda => &[
            "included: the workspaces of cuDNN and cuBLASLt, as planned; where none of cuDNN's deterministic \
             algorithms fits the planned one, its own comes on top",
            "on top: the driver's context and the libraries, whose size only the GPU knows",
            "not counted: memory of the host (batches made ahead, decoded images)",
        ],
    };
    notes.iter().map(|note| note.to_string()).collect()
}
