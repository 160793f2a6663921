//! The steps of a stage that a GPU runs from a recording, and what the host must know of each.
//!
//! Whether a gradient is overwritten or added to is decided on the host, by flags that a step reads and sets; so the
//! flags before a step are part of what is recorded, and a replayed step sets those that the recorded one has set. Main
//! type: [`Recordings`].

use std::collections::HashMap;
use std::rc::Rc;

use crate::device::{Device, Recording, StepPlan};
use crate::error::Result;
use crate::nn::ParamStore;
use crate::tape::Param;

/// What a step is, but for the contents of its inputs.
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
    /// The flags that it leaves behind.
    after: Vec<bool>,
}

/// All recordings of a stage.
#[derive(Default)]
pub(super) struct Recordings(HashMap<(Step, Vec<bool>), Entry>);

impl Recordings {
    /// Runs a step by its plan, from a recording where there is one.
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
