//! GPUs: memory, launches and recorded steps, through a driver: NVIDIA's (feature `cuda`) or the simulated device (feature
//! `sim`), which runs the same kernels on the host.
//!
//! Main types: [`Gpu`], [`Launch`]. Nothing here knows an op; ops ask for a kernel by name.

#[cfg(feature = "cuda-driver")]
pub mod cuda;
pub mod driver;
mod launch;
#[cfg(feature = "sim")]
pub mod sim;

use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;

pub use driver::{Graph, Grid, Later, Pass, Target};
pub use launch::{Launch, Operand};

use driver::Driver;

use super::arena::Arena;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A GPU and its memory.
pub struct Gpu {
    pub(super) arena: Rc<Arena>,
    driver: Rc<dyn Driver>,
    syncs: Cell<u64>,
}

impl Gpu {
    #[cfg(any(feature = "sim", feature = "cuda-driver"))]
    fn new(driver: Rc<dyn Driver>) -> Rc<Gpu> {
        Rc::new(Gpu { arena: Rc::new(Arena::on(driver.clone())), driver, syncs: Cell::new(0) })
    }

    /// The simulated device; threads of a block run in the order that `seed` gives (0: ascending).
    #[cfg(feature = "sim")]
    pub fn simulated(seed: u64) -> Rc<Gpu> {
        Gpu::new(Rc::new(sim::Sim::new(seed)))
    }

    /// The `index`-th NVIDIA GPU.
    ///
    /// Errors: `Device` if there is no driver, no such device, or a library is missing.
    #[cfg(feature = "cuda-driver")]
    pub fn cuda(index: usize) -> Result<Rc<Gpu>> {
        Ok(Gpu::new(Rc::new(cuda::Cuda::new(index)?)))
    }

    /// Which kind it is.
    pub fn target(&self) -> Target {
        self.driver.target()
    }

    /// Its name, for messages.
    pub fn name(&self) -> String {
        self.driver.name()
    }

    /// The simulated device, if it is that.
    #[cfg(feature = "sim")]
    pub fn sim(&self) -> Option<&sim::Sim> {
        self.driver.as_any().downcast_ref()
    }

    /// NVIDIA's driver, if it is that.
    #[cfg(feature = "cuda-driver")]
    pub fn cuda_driver(&self) -> Option<&cuda::Cuda> {
        self.driver.as_any().downcast_ref()
    }

    /// How often the host waited for the device.
    pub fn host_syncs(&self) -> u64 {
        self.syncs.get()
    }

    /// The kernel `<name>_<dtype>`, to be given its arguments.
    pub fn kernel(&self, name: &str, dtype: DType) -> Launch<'_> {
        Launch::new(&*self.driver, format!("{name}_{}", dtype.name()))
    }

    pub(crate) fn upload(&self, ptr: NonNull<u8>, data: &[u8]) -> Result<()> {
        // SAFETY: the caller is `Tensor::write`, whose buffer is this device's and as long as `data`.
        unsafe { self.driver.upload(ptr, data) }
    }

    pub(crate) fn download(&self, data: &mut [u8], ptr: NonNull<u8>) -> Result<()> {
        self.syncs.set(self.syncs.get() + 1);
        // SAFETY: the caller is `Tensor::to_vec`, whose buffer is this device's and as long as `data`.
        unsafe { self.driver.download(data, ptr) }
    }

    pub(crate) fn read_later(&self, ptr: NonNull<u8>, bytes: usize) -> Result<Later> {
        // SAFETY: the caller is `Tensor::read_later`, whose buffer is this device's and of `bytes`.
        unsafe { self.driver.read_later(ptr, bytes) }
    }

    pub(crate) fn fill(&self, ptr: NonNull<u8>, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller is `Tensor::fill_bytes`, whose buffer is this device's and of `bytes`.
        unsafe { self.driver.fill(ptr, byte, bytes) }
    }

    /// Waits until all work is done.
    ///
    /// Errors: `Kernel` if some of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.syncs.set(self.syncs.get() + 1);
        self.driver.synchronize()
    }

    /// Records what `f` launches instead of running it.
    ///
    /// Errors: whatever `f` returns, or the driver cannot record.
    pub fn record<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<(R, Graph)> {
        self.driver.begin_recording()?;
        let out = f();
        let graph = self.driver.end_recording();
        Ok((out?, graph?))
    }

    /// Runs what [`Gpu::record`] recorded, with the same memory.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        self.driver.replay(graph)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A size as the u32 that a kernel's parameters hold.
///
/// Errors: `Value` if it does not fit.
pub fn dim_u32(what: &str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::value(what, format!("a size of {n} is more than a kernel takes (2^32 - 1)")))
}
