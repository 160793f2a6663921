//! What `train --plan` says: the memory that each stage of a recipe needs, and what for, before anything is trained.
//!
//! Main type: [`PlanReport`]; as text by `Display`, for machines by [`PlanReport::to_json`]. Sizes are bytes.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};

use serde::Serialize;

use super::budget::{self, Budget, Fitted, StageBudget};
use super::rates::{Rate, Rates};
use super::{Planner, StageContext, StagePlans};
use crate::device::{LiveAtPeak, StepPlan, Target};
use crate::engine::Bucket;
use crate::engine::feed::RunData;
use crate::engine::memory::PersistentBytes;
use crate::error::Result;
use crate::format::{bytes, duration, short};
use crate::recipe::{BatchNormMode, Recipe, Recompute, StageConfig};
use crate::tensor::DType;

/// Groups of a step that are printed; the others are summed up.
const GROUPS_SHOWN: usize = 8;

/// The memory of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanReport {
    /// Name of the recipe.
    pub recipe: String,
    /// What it is planned for: "cpu", "cuda" or "sim".
    pub device: &'static str,
    /// What each stage was fitted into; none without a budget.
    pub budget_bytes: Option<usize>,
    /// What of the data decides about memory.
    pub data: DataReport,
    /// One for each stage.
    pub stages: Vec<StageReport>,
    /// Of the stage that needs most.
    pub needed_bytes: usize,
    /// What of the data is left out, what is in these numbers and what is not, in words.
    pub notes: Vec<String>,
}

/// The worst case of the training data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataReport {
    /// Images that are trained on.
    pub images: usize,
    /// Classes.
    pub classes: usize,
    /// Largest number of ground-truth boxes in one image.
    pub max_objects: usize,
    /// File name of that image, the first of several; none without ground truth.
    pub max_objects_image: Option<String>,
    /// Room for ground-truth boxes that each image gets.
    pub gt_slots: usize,
    /// Largest network input of all stages.
    pub largest_input: Option<LargestInput>,
}

/// A network input of many pixels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LargestInput {
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
    /// The first stage that has it.
    pub stage: String,
}

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
    /// Storage of activations in training, `auto` resolved.
    pub precision: &'static str,
    /// Storage of optimizer state, `auto` resolved.
    pub state_precision: &'static str,
    /// What of the backbone is computed again in the backward pass.
    pub recompute: Recompute,
    /// What batch norm does; none in a model without.
    pub batch_norm: Option<BatchNormMode>,
    /// Images whose statistics batch norm takes; none where it takes running statistics.
    pub batch_norm_images: Option<usize>,
    /// Room for the runs of an image's masks; 0 without masks.
    pub mask_runs: usize,
    /// What stays between steps, by kind.
    pub persistent: PersistentBytes,
    /// The same in all.
    pub persistent_bytes: usize,
    /// Every step that the stage runs.
    pub plans: Vec<StepReport>,
    /// The memory that steps share: as much as the largest needs.
    pub arena_bytes: usize,
    /// What a run of the stage reserves: what stays, and the arena.
    pub total_bytes: usize,
    /// How long it takes, if the same work has been done before.
    pub expected: Option<ExpectedTime>,
    /// How it was made to fit; none without a budget.
    pub budget: Option<StageBudget>,
}

/// How long a stage takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpectedTime {
    /// Seconds of all training steps; evaluations come on top.
    pub training_s: f64,
    /// Where that comes from.
    #[serde(flatten)]
    pub rate: Rate,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// A forward and backward pass.
    Train,
    /// An evaluation pass.
    Eval,
    /// The optimizer's step.
    Update,
}

/// The memory of one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// What it does.
    pub step: StepKind,
    /// Images; none for the optimizer's.
    pub images: Option<usize>,
    /// Pixels of an image.
    pub height: Option<usize>,
    /// Pixels of an image.
    pub width: Option<usize>,
    /// Arena that it needs.
    pub peak_bytes: usize,
    /// The most bytes that are alive at one time: no plan needs less.
    pub lower_bound_bytes: usize,
    /// Who asks for memory at that time.
    pub peak_in: String,
    /// What is alive at that time, largest first: together `lower_bound_bytes`.
    pub live: Vec<LiveGroup>,
}

/// Why a buffer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LiveKind {
    /// An output of the forward pass, or what it keeps for the backward pass.
    Activations,
    /// The gradient of an activation.
    Gradients,
    /// For the duration of one op.
    Workspace,
}

/// Buffers of one kind and module.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LiveGroup {
    /// Why they are there.
    pub kind: LiveKind,
    /// Part of the network, `backbone/layer1`; the op where it belongs to none.
    pub module: String,
    /// Bytes alive.
    pub bytes: usize,
    /// Buffers alive.
    pub buffers: usize,
}

impl PlanReport {
    /// Plans every stage as the planner's device needs it, changed to fit the budget if there is one, and expects of it what `rates` say.
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

    /// One document, its keys as the fields here.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plan: numbers and text")
    }
}

impl DataReport {
    fn new(data: &RunData, stages: &[StageReport]) -> Result<DataReport> {
        let dataset = data.train.dataset();
        let objects = |image: &usize| dataset.ground_truth(*image).count();
        // The first of the largest: what `Dataset::max_gt` rounds up.
        let most = (0..dataset.images.len()).rev().max_by_key(objects).filter(|i| objects(i) > 0);
        let inputs = stages.iter().rev().flat_map(|s| s.plans.iter().rev().map(move |p| (s, p)));
        let inputs = inputs.filter_map(|(s, p)| Some((s, p.height?, p.width?)));
        let largest = inputs.max_by_key(|(_, height, width)| height * width);
        Ok(DataReport {
            images: dataset.training_images(data.filter)?.len(),
            classes: dataset.categories.len(),
            max_objects: most.as_ref().map_or(0, objects),
            max_objects_image: most.map(|i| dataset.images[i].file_name.clone()),
            gt_slots: data.max_gt,
            largest_input: largest.map(|(s, height, width)| LargestInput { height, width, stage: s.name.clone() }),
        })
    }
}

impl StageReport {
    /// What the plans of a stage say.
    pub fn new(
        stage: &StageConfig,
        context: &StageContext,
        plans: &StagePlans,
        has_batch_norm: bool,
        target: Target,
    ) -> StageReport {
        let setup = &context.setup;
        let of = |step, images, buckets: &[Bucket], plans: &[std::rc::Rc<StepPlan>]| -> Vec<StepReport> {
            buckets.iter().zip(plans).map(|(&b, plan)| StepReport::new(step, Some((images, b)), plan)).collect()
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
                // Ops of 16 bits keep their inputs there, and nothing else.
                Recompute::Norms if target == Target::Cpu && setup.dtype != DType::F32 => Recompute::None,
                // Frozen batch norm keeps its output alone.
                Recompute::Norms if batch_norm == Some(BatchNormMode::Frozen) => Recompute::None,
                how => how,
            },
            batch_norm,
            batch_norm_images: batch_norm.filter(|m| *m == BatchNormMode::Train).map(|_| stage.micro_batch),
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

impl StepReport {
    fn new(step: StepKind, input: Option<(usize, Bucket)>, plan: &StepPlan) -> StepReport {
        let mut groups: BTreeMap<(LiveKind, String), (usize, usize)> = BTreeMap::new();
        for row in plan.live_at_peak() {
            let group = groups.entry(group_of(&row)).or_default();
            group.0 += row.bytes;
            group.1 += row.buffers;
        }
        let groups = groups.into_iter();
        let mut live: Vec<LiveGroup> =
            groups.map(|((kind, module), (bytes, buffers))| LiveGroup { kind, module, bytes, buffers }).collect();
        live.sort_by_key(|group| std::cmp::Reverse(group.bytes));
        StepReport {
            step,
            images: input.map(|(images, _)| images),
            height: input.map(|(_, bucket)| bucket.h),
            width: input.map(|(_, bucket)| bucket.w),
            peak_bytes: plan.peak_bytes(),
            lower_bound_bytes: plan.lower_bound_bytes(),
            peak_in: plan.peak_scope().unwrap_or_default().into(),
            live,
        }
    }
}

/// Kind and module: the first two names of modules, or else the first of all names.
fn group_of(row: &LiveAtPeak) -> (LiveKind, String) {
    let mut names = row.scope.split('/').filter(|name| ![BACKWARD, RECOMPUTE].contains(name));
    let kind = match row.workspace {
        true => LiveKind::Workspace,
        // A forward pass that a backward pass runs again keeps activations.
        false if row.scope.rsplit('/').take_while(|name| *name != RECOMPUTE).any(|name| name == BACKWARD) => {
            LiveKind::Gradients
        }
        false => LiveKind::Activations,
    };
    let module = match &*row.module {
        "" => names.next().unwrap_or(BACKWARD).into(),
        path => path.split('/').take(2).collect::<Vec<_>>().join("/"),
    };
    (kind, module)
}

/// What [`crate::tape::Tape::backward`] runs in.
const BACKWARD: &str = "backward";
/// What [`crate::tape::Tape::rematerialise`] runs again in.
const RECOMPUTE: &str = "recompute";

fn notes(target: Target) -> Vec<String> {
    let notes: &[&str] = match target {
        Target::Cpu => &["on top: the program, batches made ahead, and decoded images where data.cache_mib keeps them"],
        Target::Sim => {
            &["on top: the guard bands of the simulated device, and what a run on the CPU needs beside its plan"]
        }
        Target::Cuda => &[
            "included: the workspaces of cuDNN and cuBLASLt, as planned; where none of cuDNN's deterministic algorithms \
             fits the planned one, its own comes on top",
            "on top: the driver's context and the libraries, whose size only the GPU knows",
            "not counted: memory of the host (batches made ahead, decoded images)",
        ],
    };
    notes.iter().map(|note| note.to_string()).collect()
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}, planned for {}", self.recipe, self.device)?;
        if let Some(budget) = self.budget_bytes {
            write!(f, ", each stage to fit {}", bytes(budget))?;
        }
        writeln!(f)?;
        writeln!(f, "{}", self.data)?;
        for stage in &self.stages {
            writeln!(f, "\n{stage}")?;
        }
        writeln!(f)?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        let largest = self.stages.iter().find(|s| s.total_bytes == self.needed_bytes).map_or("", |s| &s.name);
        write!(f, "needs {} in all ({} bytes), in stage {largest}", bytes(self.needed_bytes), self.needed_bytes)
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let DataReport { images, classes, max_objects, max_objects_image, gt_slots, largest_input } = self;
        write!(f, "{images} images to train on, {classes} classes; ")?;
        match max_objects_image {
            Some(name) => write!(f, "up to {max_objects} objects in an image ({name}), room for {gt_slots}")?,
            None => write!(f, "no objects")?,
        }
        match largest_input {
            Some(LargestInput { height, width, stage }) => {
                write!(f, "; largest input {height}x{width} (stage {stage})")
            }
            None => Ok(()),
        }
    }
}

/// A row: what, and how many bytes.
fn row(f: &mut Formatter<'_>, indent: usize, what: &str, count: usize) -> fmt::Result {
    write!(f, "\n{:indent$}{what:width$} {:>12}", "", bytes(count), width = 46 - indent)
}

impl fmt::Display for StageReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (step, pass) = (self.images_per_step, self.micro_batch);
        write!(f, "stage {}: {} steps of {step} images, ", self.name, self.steps)?;
        match self.passes_per_step {
            1 => write!(f, "in one pass each")?,
            passes => write!(f, "in {passes} passes of {pass} each")?,
        }
        write!(f, "; {}; ", self.precision)?;
        if self.state_precision != DType::F32.name() {
            write!(f, "optimizer state in {}; ", self.state_precision)?;
        }
        match self.recompute {
            Recompute::None => {}
            Recompute::Norms if self.batch_norm.is_some() => write!(f, "outputs of batch norm made twice; ")?,
            Recompute::Norms => write!(f, "outputs of layer norm and GELU made twice; ")?,
            Recompute::Blocks => write!(f, "blocks of the backbone computed twice; ")?,
        }
        write!(f, "batch norm: ")?;
        match self.batch_norm {
            None => write!(f, "none in this model")?,
            Some(BatchNormMode::Train) if pass < step => {
                write!(f, "statistics of the {pass} images of a pass, not of the {step} of a step")?;
            }
            Some(BatchNormMode::Train) => write!(f, "statistics of the {pass} images of a step")?,
            Some(BatchNormMode::Eval) => write!(f, "running statistics, scale and bias trained")?,
            Some(BatchNormMode::Frozen) => write!(f, "running statistics, nothing trained")?,
        }
        if self.mask_runs > 0 {
            write!(f, "; room for {} runs of masks an image", self.mask_runs)?;
        }
        row(f, 2, "between steps", self.persistent_bytes)?;
        for (what, count) in self.persistent.rows().into_iter().filter(|(_, count)| *count > 0) {
            row(f, 6, what, count)?;
        }
        self.plans.iter().try_for_each(|plan| plan.fmt(f))?;
        row(f, 2, "all: between steps and the largest step", self.total_bytes)?;
        self.expected.iter().try_for_each(|expected| write!(f, "\n  {expected}"))?;
        self.budget.iter().try_for_each(|budget| budget.fmt(f))
    }
}

impl fmt::Display for ExpectedTime {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Rate { images_per_s, run, device, threads } = &self.rate;
        write!(
            f,
            "its training steps take about {}, at {} images/s as in ",
            duration(self.training_s),
            short(*images_per_s)
        )?;
        write!(f, "{} ({device}, threads: {threads}); evaluations come on top", run.display())
    }
}

impl fmt::Display for StepReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let what = match (self.images, self.height, self.width) {
            (Some(images), Some(h), Some(w)) => format!("{} step, {images} x {h}x{w} pixels", name(&self.step)),
            _ => format!("{} step", name(&self.step)),
        };
        row(f, 2, &what, self.peak_bytes)?;
        if self.step == StepKind::Update {
            return Ok(()); // a few KiB, and not what anyone can change
        }
        write!(f, "  (lower bound {}; peak in {})", bytes(self.lower_bound_bytes), self.peak_in)?;
        let (shown, rest) = self.live.split_at(self.live.len().min(GROUPS_SHOWN));
        for group in shown {
            row(f, 6, &format!("{} {}", name(&group.kind), group.module), group.bytes)?;
        }
        if !rest.is_empty() {
            row(f, 6, "the rest", rest.iter().map(|group| group.bytes).sum())?;
        }
        match self.peak_bytes - self.lower_bound_bytes {
            0 => Ok(()),
            gaps => row(f, 6, "gaps between buffers", gaps),
        }
    }
}

/// As in a recipe.
fn name(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
}
