//! The error type of the library. The text of an error begins with the place, option or file that is wrong.

use std::path::{Path, PathBuf};

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error. Its text is one line that says what is wrong, where, and what to do.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor has the wrong shape. `what` is `op: argument`.
    #[error("{what}: want {want}, got {got:?}")]
    Shape {
        /// Op and argument.
        what: String,
        /// Expected shape, in the letters of docs/conventions.
        want: String,
        /// Actual shape.
        got: Vec<usize>,
    },
    /// A tensor has the wrong element type.
    #[error("{what}: want {want}, got {got}")]
    Dtype {
        /// Op and argument.
        what: String,
        /// Allowed types.
        want: String,
        /// Actual type.
        got: String,
    },
    /// An op, layer or option does not accept a value, for example a convolution kernel of size 0.
    #[error("{what}: {message}")]
    Value {
        /// Op, layer or option.
        what: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A device does not exist or has too little memory.
    #[error("{what}: {message}")]
    Device {
        /// Op or device.
        what: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A kernel was refused or aborted by the GPU or the simulated device.
    #[error("{op}: {message}")]
    Kernel {
        /// Stage, module and op: `step/rpn/nms`.
        op: String,
        /// Kernel, tensors, grid, and what is wrong.
        message: String,
    },
    /// A training step allocates differently from its plan.
    #[error("plan: {message}")]
    Plan {
        /// The allocation that differs, and how.
        message: String,
    },
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason that the system gives.
        source: std::io::Error,
    },
    /// A data set cannot be used as it is.
    #[error("{}: {message}", path.display())]
    Data {
        /// The annotation file or image.
        path: PathBuf,
        /// Key or annotation id, what is wrong, and what to do.
        message: String,
    },
    /// A recipe cannot be used as it is.
    #[error("{}: {key}: {message}", path.display())]
    Recipe {
        /// The recipe file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A checkpoint cannot be used.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The checkpoint file.
        path: PathBuf,
        /// Tensor or entry, what is wrong, and what to do.
        message: String,
    },
    /// Training computed a value that is not finite.
    #[error("step {step}: {tensor} is {value}: training stops; {hint}")]
    NonFinite {
        /// Global step.
        step: u64,
        /// The first such tensor found.
        tensor: String,
        /// The value.
        value: f32,
        /// What to try.
        hint: String,
    },
}

impl Error {
    /// An [`Error::NonFinite`] for a loss or a norm, at a step counted from 0.
    pub(crate) fn non_finite(step: u64, tensor: String, value: f32) -> Error {
        let hint = "lower the learning rate, lengthen the warm-up or set clip_grad_norm; UPRES_CHECK_FINITE=1 names \
                    the first tensor; checkpoints that were written are intact";
        Error::NonFinite { step, tensor, value, hint: hint.into() }
    }

    /// An [`Error::Io`].
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }
    /// An [`Error::Data`].
    pub fn data(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().to_path_buf(), message: message.into() }
    }
    /// An [`Error::Recipe`].
    pub fn recipe(path: impl AsRef<Path>, key: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Recipe { path: path.as_ref().to_path_buf(), key: key.into(), message: message.into() }
    }
    /// An [`Error::Checkpoint`].
    pub fn checkpoint(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Checkpoint { path: path.as_ref().to_path_buf(), message: message.into() }
    }
    /// An [`Error::Value`].
    pub fn value(what: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Value { what: what.into(), message: message.into() }
    }
}
