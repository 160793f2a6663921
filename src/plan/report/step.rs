//! The memory of one step, and which buffers are alive at its peak.
//!
//! Main type: [`StepReport`].

use std::collections::BTreeMap;

use serde::Serialize;

use crate::data::Shape;
use crate::device::{LiveAtPeak, StepPlan};

/// The scope in which [`crate::tape::Tape::backward`] executes.
const BACKWARD: &str = "backward";
/// The scope in which the blocks of [`crate::tape::Tape::recompute`] are rematerialised.
const RECOMPUTE: &str = "recompute";

/// The work of a step.
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
    /// The work that it does.
    pub step: StepKind,
    /// Images; `None` for the optimizer's step.
    pub images: Option<usize>,
    /// Pixels of an image.
    pub height: Option<usize>,
    /// Pixels of an image.
    pub width: Option<usize>,
    /// Size of the arena that it needs.
    pub peak_bytes: usize,
    /// The most bytes that are alive at one time: no plan needs less.
    pub lower_bound_bytes: usize,
    /// The scope that asks for memory at that time.
    pub peak_in: String,
    /// Buffers alive at that time, largest group first: together `lower_bound_bytes`.
    pub live: Vec<LiveGroup>,
}

/// The purpose of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LiveKind {
    /// An output of the forward pass, or a tensor that it saves for the backward pass.
    Activations,
    /// The gradient of an activation.
    Gradients,
    /// Memory for the duration of one op.
    Workspace,
}

/// Buffers of one kind and module.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LiveGroup {
    /// Their purpose.
    pub kind: LiveKind,
    /// Part of the network, such as `backbone/layer1`; the op's name where a buffer belongs to no module.
    pub module: String,
    /// Bytes alive.
    pub bytes: usize,
    /// Buffers alive.
    pub buffers: usize,
}

/// The input of a forward pass.
#[derive(Clone, Copy)]
pub(super) struct StepInput {
    pub(super) images: usize,
    pub(super) bucket: Shape,
}

impl StepReport {
    /// The numbers of a plan. `input` is `None` for the optimizer's step.
    pub(super) fn new(step: StepKind, input: Option<StepInput>, plan: &StepPlan) -> StepReport {
        let mut groups: BTreeMap<(LiveKind, String), LiveGroup> = BTreeMap::new();
        for row in plan.live_at_peak() {
            let (kind, module) = group_of(&row);
            let empty = || LiveGroup { kind, module: module.clone(), bytes: 0, buffers: 0 };
            let group = groups.entry((kind, module.clone())).or_insert_with(empty);
            group.bytes += row.bytes;
            group.buffers += row.buffers;
        }
        let mut live: Vec<LiveGroup> = groups.into_values().collect();
        live.sort_by_key(|group| std::cmp::Reverse(group.bytes));
        StepReport {
            step,
            images: input.map(|input| input.images),
            height: input.map(|input| input.bucket.height as usize),
            width: input.map(|input| input.bucket.width as usize),
            peak_bytes: plan.peak_bytes(),
            lower_bound_bytes: plan.lower_bound_bytes(),
            peak_in: plan.peak_scope().unwrap_or_default().into(),
            live,
        }
    }
}

/// Kind and module of a buffer. The module is the first two names of the module's path, or the first name of the scope
/// if there is no module.
fn group_of(row: &LiveAtPeak) -> (LiveKind, String) {
    let mut names = row.scope.split('/').filter(|name| ![BACKWARD, RECOMPUTE].contains(name));
    let kind = match row.workspace {
        true => LiveKind::Workspace,
        // A forward pass that is rematerialised inside the backward pass saves activations.
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
