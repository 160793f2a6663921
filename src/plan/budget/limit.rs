//! How many bytes a stage may take, and what was changed of it so that it fits.

use std::fmt;

use serde::Serialize;

use crate::device::Device;
use crate::error::Result;
use crate::format::bytes;

/// Part of a GPU, in bytes, that is left at least to what libraries take later.
const MARGIN_BYTES: usize = 256 << 20;
/// Largest number of images of a pass that [`super::Largest`] tries.
pub const MOST_IMAGES: usize = 1024;

/// Bytes that each stage may take, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// The user, by `--memory`.
    Given(usize),
    /// The device: what it has free, less a margin.
    Free(usize),
}

impl Budget {
    /// What a GPU has free, less a twentieth of its memory, and at least 256 MiB, for what its libraries take later. None for the
    /// CPU and the simulated device.
    ///
    /// Errors: `Kernel` if the driver does not say.
    pub fn free(device: &Device) -> Result<Option<Budget>> {
        let memory = device.memory()?;
        Ok(memory.map(|(free, total)| Budget::Free(free.saturating_sub(MARGIN_BYTES.max(total / 20)))))
    }

    /// How many.
    pub fn bytes(self) -> usize {
        match self {
            Budget::Given(bytes) | Budget::Free(bytes) => bytes,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Given(given) => write!(f, "--memory gives {}", bytes(*given)),
            Budget::Free(free) => write!(f, "the GPU has {} free beside a margin", bytes(*free)),
        }
    }
}

/// What was changed of a stage so that it fits.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageFit {
    /// What it needs as the recipe has it.
    pub unchanged_bytes: usize,
    /// Keys of the stage that were changed.
    pub changes: Vec<Change>,
    /// In words: what and why, and what it costs.
    pub why: Vec<String>,
}

/// A key of a stage with another value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The key: `micro_batch`, `recompute`, `eval_batch` or `optimizer.state`.
    pub key: &'static str,
    /// What the recipe says.
    pub was: String,
    /// What the run takes.
    pub is: String,
}
