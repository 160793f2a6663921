//! The recordings from which a GPU replays the steps of a stage, and the host state that belongs to each recording.
//! Main type: [`Recordings`].
//!
//! Each gradient has a flag on the host which decides whether the gradient is overwritten or added to. A step reads and
//! sets these flags. So the flags before a step are part of the key of its recording, and a replay sets the flags that
//! the recorded step has set.

use std::collections::HashMap;
use std::rc::Rc;

use crate::device::{Device, Recording, StepPlan};
use crate::error::Result;
use crate::nn::ParamStore;
use crate::tape::Param;

/// Everything that distinguishes one step from another, except the contents of its inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// A training pass: bucket, bits of the weight, whether samples are random.
    Train { bucket: usize, weight: u32, random: bool },
    /// An optimizer step.
    Update,
    /// An evaluation pass: bucket, whether weights are swapped with their average.
    Eval { bucket: usize, swapped: bool },
}

struct Entry {
    recording: Recording,
    /// The flags of the gradients after the step.
    after: Vec<bool>,
}

/// All recordings of a stage, by step and by the gradients' flags before it.
#[derive(Default)]
pub(super) struct Recordings(HashMap<(Step, Vec<bool>), Entry>);

impl Recordings {
    /// Executes a step by its plan; replays its recording if there is one.
    pub(super) fn run(
        &mut self,
        device: &Device,
        store: &ParamStore,
        step: Step,
        plan: Option<&Rc<StepPlan>>,
        run: impl FnOnce() -> Result<()>,
    ) -> Result<Rc<StepPlan>> {
        if !device.has_data() {
            return device.step(plan, run).map(|((), plan)| plan);
        }
        let flags = || store.trainable().map(Param::is_written).collect::<Vec<bool>>();
        let entry = self.0.entry((step, flags()));
        let entry = entry.or_insert_with(|| Entry { recording: Recording::default(), after: Vec::new() });
        let (ran, plan) = device.repeat(&mut entry.recording, plan, run)?;
        if ran {
            entry.after = flags();
        } else {
            store.trainable().zip(&entry.after).for_each(|(p, &written)| p.set_written(written));
        }
        Ok(plan)
    }
}
