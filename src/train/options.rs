//! What the command line decides about a run, beside its recipe.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Options of a run that are not in its recipe.
#[derive(Clone, Debug, Default)]
pub struct TrainOptions {
    /// Folder for checkpoints.
    pub checkpoints: PathBuf,
    /// Checkpoint to resume from.
    pub resume: Option<PathBuf>,
    /// Number of optimizer steps of the whole run after which it ends.
    pub stop_after: Option<u64>,
    /// The run ends after the current step once this is true.
    pub interrupt: Arc<AtomicBool>,
}
