//! What a GPU's driver is to the rest: memory, copies, launches, recording. NVIDIA's and the simulated device implement it.
//!
//! Main type: `Driver`. [`Grid`] and [`Args`] describe one launch.

use std::any::Any;
use std::ptr::NonNull;
use std::rc::Rc;

use crate::error::Result;

/// The kind of device that a plan is for: devices differ in the workspaces that their kernels need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The CPU.
    Cpu,
    /// The simulated device: the GPU's kernels, but convolutions and matrix products of the CPU.
    Sim,
    /// A GPU.
    Cuda,
}

/// Which of the three products of a convolution or a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// y from x and w.
    Forward,
    /// dx from dy and w.
    Data,
    /// dw from x and dy.
    Weights,
}

/// A recorded step: what the driver needs to run it again without the host's part.
pub type Graph = Rc<dyn Any>;

/// A small result on its way to the host: waits for it, if need be.
pub type Later = Box<dyn FnOnce() -> Result<Vec<u8>>>;

/// What a GPU's driver does. Addresses are the device's.
pub(crate) trait Driver {
    /// Which kind it is.
    fn target(&self) -> Target;
    /// The device's name, for messages.
    fn name(&self) -> String;
    /// For its own functions (cuDNN, a host closure).
    #[cfg_attr(
        not(any(feature = "sim", feature = "cuda-driver")),
        allow(dead_code, reason = "no driver in this build")
    )]
    fn as_any(&self) -> &dyn Any;
    /// Memory whose contents are not set, at a multiple of 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<NonNull<u8>>;
    /// Gives memory of `alloc` back.
    ///
    /// # Safety
    /// `ptr` came from `alloc(bytes)`, and nothing uses it any more.
    unsafe fn free(&self, ptr: NonNull<u8>, bytes: usize);
    /// Sets bytes, in stream order.
    ///
    /// # Safety
    /// The range lies in memory of this driver.
    unsafe fn fill(&self, ptr: NonNull<u8>, byte: u8, bytes: usize) -> Result<()>;
    /// Copies from the host, in stream order; the source may be reused at once.
    ///
    /// # Safety
    /// The range lies in memory of this driver.
    unsafe fn upload(&self, ptr: NonNull<u8>, data: &[u8]) -> Result<()>;
    /// Copies to the host and waits for it.
    ///
    /// # Safety
    /// The range lies in memory of this driver.
    unsafe fn download(&self, data: &mut [u8], ptr: NonNull<u8>) -> Result<()>;
    /// Begins to copy a few KiB to the host, in stream order; nobody waits until the result is asked for.
    ///
    /// # Safety
    /// The range lies in memory of this driver.
    unsafe fn read_later(&self, ptr: NonNull<u8>, bytes: usize) -> Result<Later>;
    /// Runs a kernel, in stream order.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and name memory that is large enough for what it does.
    unsafe fn launch(&self, kernel: &str, args: &Args, grid: Grid) -> Result<()>;
    /// From here on, work is recorded and not run.
    fn begin_recording(&self) -> Result<()>;
    /// The work recorded since.
    fn end_recording(&self) -> Result<Graph>;
    /// Runs recorded work. Its memory must be there still.
    fn replay(&self, graph: &Graph) -> Result<()>;
    /// Waits until all work is done; Err names what failed.
    fn synchronize(&self) -> Result<()>;
}

/// Blocks of a grid and threads of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y, z.
    pub blocks: [u32; 3],
    /// Threads along x, y, z.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

/// Most blocks along x that a grid-stride loop gets: enough to fill any GPU many times over.
const MAX_STRIDE_BLOCKS: usize = 132 * 32;

impl Grid {
    /// One block of `threads` threads for each of `blocks` units.
    pub fn blocks(blocks: usize, threads: u32) -> Grid {
        // More than 2^31 - 1 blocks cannot be launched; the driver says so.
        Grid { blocks: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }

    /// One thread for each of `n` elements.
    pub fn threads(n: usize, threads: u32) -> Grid {
        Grid::blocks(n.div_ceil(threads as usize), threads)
    }

    /// About one thread for each of `n` units of work of a kernel that loops over the grid (`global_threads`).
    pub fn stride(n: usize, threads: u32) -> Grid {
        Grid::blocks(n.div_ceil(threads as usize).min(MAX_STRIDE_BLOCKS), threads)
    }

    /// With blocks along y too.
    pub fn y(mut self, blocks: usize) -> Grid {
        self.blocks[1] = u32::try_from(blocks).unwrap_or(u32::MAX);
        self
    }

    /// With blocks along z too.
    pub fn z(mut self, blocks: usize) -> Grid {
        self.blocks[2] = u32::try_from(blocks).unwrap_or(u32::MAX);
        self
    }

    /// With dynamic shared memory.
    pub fn shared(mut self, bytes: usize) -> Grid {
        self.shared_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self
    }

    /// Nothing to do: a grid of 0 blocks is a launch error, not a no-op.
    pub fn is_empty(&self) -> bool {
        self.blocks.contains(&0)
    }
}

/// Arguments as the driver wants them: bytes, one run an argument, each at a multiple of 8.
#[derive(Clone, Default)]
pub struct Args {
    words: Vec<u64>,
    /// First word and bytes of each.
    runs: Vec<(usize, usize)>,
}

impl Args {
    /// Appends an argument.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let at = self.words.len();
        self.words.resize(at + bytes.len().div_ceil(8), 0);
        bytemuck::cast_slice_mut::<u64, u8>(&mut self.words[at..])[..bytes.len()].copy_from_slice(bytes);
        self.runs.push((at, bytes.len()));
    }

    /// Bytes of each argument.
    #[cfg(feature = "sim")]
    pub(super) fn sizes(&self) -> impl ExactSizeIterator<Item = usize> {
        self.runs.iter().map(|r| r.1)
    }

    /// The address of each argument.
    #[cfg(any(feature = "sim", feature = "cuda-driver"))]
    pub(super) fn addresses(&self) -> Vec<*mut std::ffi::c_void> {
        self.runs.iter().map(|r| self.words[r.0..].as_ptr().cast_mut().cast()).collect()
    }
}
