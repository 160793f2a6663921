//! Events of a run: one value for each line of `log.jsonl`.
//!
//! Main types: [`Event`], [`Observer`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run begins or is resumed.
    Start(Start),
    /// A stage begins or is resumed.
    Stage(Stage),
    /// An optimizer step.
    Train(Train),
    /// An evaluation.
    Eval(Eval),
    /// A checkpoint was written.
    Checkpoint(CheckpointWritten),
    /// The run has ended.
    End(End),
}

/// See [`Event::Start`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The program's version.
    pub version: String,
    /// The recipe's name.
    pub recipe: String,
    /// Seed of the run.
    pub seed: u64,
    /// Device.
    pub device: String,
    /// Threads of the CPU back end.
    pub threads: usize,
    /// Class names.
    pub classes: Vec<String>,
    /// Number of parameters.
    pub parameters: usize,
    /// CRC-32C of the resolved recipe. The following events are of this recipe.
    #[serde(default)]
    pub recipe_crc32c: u32,
    /// Global step from which a resumed run continues.
    pub resumed_at: Option<u64>,
    /// Data that is not used, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// See [`Event::Stage`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Name.
    pub stage: String,
    /// Index.
    pub stage_index: usize,
    /// Number of stages.
    pub stages: usize,
    /// Optimizer steps of the stage.
    pub steps: u64,
    /// Optimizer steps of one epoch.
    pub steps_per_epoch: u64,
    /// Optimizer steps of all stages together, as far as known.
    pub total_steps: u64,
    /// Training images.
    pub images: usize,
    /// Height and width of each shape bucket.
    pub buckets: Vec<[usize; 2]>,
    /// Bytes of parameters, optimizer state and inputs.
    pub persistent_bytes: usize,
    /// Bytes of the step's arena.
    pub arena_bytes: usize,
    /// Global step at which it begins.
    pub global_step: u64,
}

/// See [`Event::Train`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// Name of the stage.
    pub stage: String,
    /// Index of the stage.
    pub stage_index: usize,
    /// Steps done in the stage.
    pub step: u64,
    /// Steps done in the run.
    pub global_step: u64,
    /// Epochs done in the stage.
    pub epoch: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// `loss` is the sum of the others.
    pub losses: BTreeMap<String, f64>,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Images per second since the last line.
    pub images_per_s: f64,
    /// Share of the time since the last line in which training waited for data.
    pub data_wait: f64,
    /// Seconds of the run, evaluations included.
    pub time_s: f64,
    /// Bytes planned for the stage.
    pub memory_bytes: usize,
    /// Steps of the stage that the optimizer skipped because a gradient in f16 overflowed, since this process began.
    #[serde(default)]
    pub skipped_steps: u64,
}

/// See [`Event::Eval`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// Name of the stage.
    pub stage: String,
    /// Index of the stage.
    pub stage_index: usize,
    /// "val" or "test".
    pub split: String,
    /// Steps done in the stage.
    pub step: u64,
    /// Steps done in the run.
    pub global_step: u64,
    /// Epochs done in the stage.
    pub epoch: f64,
    /// Seconds of the run.
    pub time_s: f64,
    /// `bbox_ap` and the other COCO metrics, 0 to 1.
    pub metrics: BTreeMap<String, f64>,
    /// AP of each class.
    pub per_class: BTreeMap<String, f64>,
}

/// See [`Event::Checkpoint`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointWritten {
    /// The file.
    pub path: String,
    /// Steps done in the run.
    pub global_step: u64,
}

/// See [`Event::End`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// "done", "interrupted" or "stopped" (`--stop-after`).
    pub reason: String,
    /// Steps done in the run.
    pub global_step: u64,
    /// Seconds of the run.
    pub time_s: f64,
    /// Share of all training time in which training waited for data.
    pub data_wait: f64,
}

/// Receives the events of a run: the log, the progress bar, TensorBoard.
pub trait Observer {
    /// Handles an event. An error ends the run.
    fn event(&mut self, event: &Event) -> crate::Result<()>;
    /// Handles a line for the user that is not part of the log.
    fn note(&mut self, _line: &str) {}
}
