//! The one error type of the library: structured fields, and a text whose first word is the place that found it.

use std::path::{Path, PathBuf};

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Every text is one line that says what, where and what to do.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor of the wrong shape. `what` is `op: argument`.
    #[error("{what}: want {want}, got {got:?}")]
    Shape {
        /// Op and argument.
        what: String,
        /// The shape wanted, in the letters of docs/conventions.
        want: String,
        /// The shape found.
        got: Vec<usize>,
    },
    /// A tensor of the wrong element type.
    #[error("{what}: want {want}, got {got}")]
    Dtype {
        /// Op and argument.
        what: String,
        /// Types allowed.
        want: String,
        /// Type found.
        got: String,
    },
    /// A value that an op or a layer cannot take (a kernel of size 0, say).
    #[error("{what}: {message}")]
    Value {
        /// Op, layer or option.
        what: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A device that is not there, or has not the memory.
    #[error("{what}: {message}")]
    Device {
        /// Op or device.
        what: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A kernel that a GPU (or the simulated device) refused or broke off.
    #[error("{op}: {message}")]
    Kernel {
        /// Stage, module and op: `step/rpn/nms`.
        op: String,
        /// Kernel, tensors, grid, what is wrong.
        message: String,
    },
    /// The step that ran is not the step that was planned.
    #[error("plan: {message}")]
    Plan {
        /// Which allocation differs, and how.
        message: String,
    },
    /// A file or folder that could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A data set that cannot be used as it is.
    #[error("{}: {message}", path.display())]
    Data {
        /// The annotation file or image.
        path: PathBuf,
        /// Key or annotation id, what is wrong, what to do.
        message: String,
    },
    /// A recipe that cannot be used as it is.
    #[error("{}: {key}: {message}", path.display())]
    Recipe {
        /// The recipe file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A checkpoint that cannot be used.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The checkpoint file.
        path: PathBuf,
        /// Which tensor or entry, what is wrong, what to do.
        message: String,
    },
    /// Training met a value that is not a number or not finite.
    #[error("step {step}: {tensor} is {value}: training stops; {hint}")]
    NonFinite {
        /// Global step.
        step: u64,
        /// The first tensor found.
        tensor: String,
        /// The value.
        value: f32,
        /// What to try.
        hint: String,
    },
}

impl Error {
    /// A loss or a norm that is not finite, at a step (from 0).
    pub(crate) fn non_finite(step: u64, tensor: String, value: f32) -> Error {
        let hint = "lower the learning rate, lengthen the warm-up or set clip_grad_norm; UPRES_CHECK_FINITE=1 names the \
                    first tensor; checkpoints that were written are intact";
        Error::NonFinite { step, tensor, value, hint: hint.into() }
    }

    /// An I/O error with its file.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }
    /// A [`Error::Data`].
    pub fn data(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().to_path_buf(), message: message.into() }
    }
    /// A [`Error::Recipe`].
    pub fn recipe(path: impl AsRef<Path>, key: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Recipe { path: path.as_ref().to_path_buf(), key: key.into(), message: message.into() }
    }
    /// A [`Error::Checkpoint`].
    pub fn checkpoint(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Checkpoint { path: path.as_ref().to_path_buf(), message: message.into() }
    }
    /// A [`Error::Value`].
    pub fn value(what: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Value { what: what.into(), message: message.into() }
    }
}
