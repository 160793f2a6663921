//! Launches: a kernel by name, its arguments in order, and its grid.
//!
//! Main types: [`Launch`], [`Operand`].

use std::fmt;

use bytemuck::NoUninit;

use super::driver::{Args, Driver, Grid};
use crate::device::scope;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Memory of a device that a kernel or a library call reads or writes. Tensors are operands; `device` does not know tensors.
///
/// `Debug` gives type and shape, for messages.
pub trait Operand: fmt::Debug {
    /// Address of the first element, on its device.
    fn address(&self) -> usize;
    /// Number of elements.
    fn numel(&self) -> usize;
    /// Element type.
    fn dtype(&self) -> DType;
    /// True if nobody else holds the memory, so that it may be written.
    fn is_unique(&self) -> bool;
    /// Size in bytes.
    fn bytes(&self) -> usize {
        self.numel() * self.dtype().bytes()
    }
}

/// A kernel about to run. Arguments are given in the order of the kernel's own: outputs, saved, inputs, parameters.
pub struct Launch<'a> {
    driver: &'a dyn Driver,
    kernel: String,
    args: Args,
    tensors: Vec<String>,
}

impl<'a> Launch<'a> {
    pub(super) fn new(driver: &'a dyn Driver, kernel: String) -> Launch<'a> {
        Launch { driver, kernel, args: Args::default(), tensors: Vec::new() }
    }

    fn tensor(&mut self, t: &dyn Operand) {
        self.args.push(&(t.address() as u64).to_ne_bytes());
        self.tensors.push(format!("{t:?}"));
    }

    /// A tensor that the kernel writes.
    ///
    /// # Panics
    /// If its buffer is shared: then somebody still reads it.
    pub fn out(mut self, t: &mut dyn Operand) -> Self {
        assert!(t.is_unique(), "{}: writing to a shared buffer", self.kernel);
        self.tensor(t);
        self
    }

    /// A tensor that the kernel writes, if there is one; else null.
    pub fn out_opt(self, t: Option<&mut impl Operand>) -> Self {
        match t {
            Some(t) => self.out(t),
            None => self.null(),
        }
    }

    /// A tensor that the kernel reads.
    pub fn arg(mut self, t: &dyn Operand) -> Self {
        self.tensor(t);
        self
    }

    /// A tensor that the kernel reads, if there is one; else null.
    pub fn opt(self, t: Option<&impl Operand>) -> Self {
        match t {
            Some(t) => self.arg(t),
            None => self.null(),
        }
    }

    /// A null pointer, where the kernel may do without a tensor.
    pub fn null(mut self) -> Self {
        self.args.push(&0u64.to_ne_bytes());
        self
    }

    /// A struct by value, with the layout of the kernel's (`repr(C)`).
    pub fn params<P: NoUninit>(mut self, p: &P) -> Self {
        self.args.push(bytemuck::bytes_of(p));
        self
    }

    /// Runs it; nothing happens if the grid is empty.
    ///
    /// Errors: `Kernel` with the op, the tensors and the reason.
    ///
    /// # Safety
    /// The arguments are those of the kernel in order and type, and the tensors as large as the kernel takes them to be.
    pub unsafe fn launch(self, grid: Grid) -> Result<()> {
        if grid.is_empty() {
            return Ok(());
        }
        // SAFETY: handed on to the caller.
        let run = unsafe { self.driver.launch(&self.kernel, &self.args, grid) };
        run.map_err(|error| match error {
            Error::Kernel { message, .. } => Error::Kernel {
                op: scope::current(),
                message: format!(
                    "{}: {message} (grid {:?}, block {:?}, tensors {})",
                    self.kernel,
                    grid.blocks,
                    grid.threads,
                    self.tensors.join(" ")
                ),
            },
            other => other,
        })
    }
}
