//! The report as text for people: `Display` of the report and its parts.

use std::fmt::{self, Formatter};

use serde::Serialize;

use super::stage::{ExpectedTime, StageReport};
use super::step::{StepKind, StepReport};
use super::{DataReport, LargestInput, PlanReport};
use crate::format::{bytes, duration, three_digits};
use crate::plan::rates::Rate;
use crate::recipe::{NormMode, Recompute};
use crate::tensor::DType;

/// Groups of live buffers printed for a step; the others are summed up in one row.
const GROUPS_SHOWN: usize = 8;

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

/// Writes a row: a label and a number of bytes.
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
            Some(NormMode::Train) if pass < step => {
                write!(f, "statistics of the {pass} images of a pass, not of the {step} of a step")?;
            }
            Some(NormMode::Train) => write!(f, "statistics of the {pass} images of a step")?,
            Some(NormMode::Eval) => write!(f, "running statistics, scale and bias trained")?,
            Some(NormMode::Frozen) => write!(f, "running statistics, nothing trained")?,
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
            three_digits(*images_per_s)
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
            return Ok(()); // a few KiB that no setting changes
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

/// A value's name in a recipe.
fn name(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
}
