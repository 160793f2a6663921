//! Launches: the arguments of one kernel and its grid.

use bytemuck::NoUninit;

use super::Gpu;
use crate::device::scope;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

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
    fn push(&mut self, bytes: &[u8]) {
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

/// A kernel about to run. Arguments are given in the order of the kernel's own: outputs, saved, inputs, parameters.
pub struct Launch<'a> {
    gpu: &'a Gpu,
    kernel: String,
    args: Args,
    tensors: Vec<String>,
}

impl<'a> Launch<'a> {
    pub(super) fn new(gpu: &'a Gpu, kernel: String) -> Launch<'a> {
        Launch { gpu, kernel, args: Args::default(), tensors: Vec::new() }
    }

    fn tensor(&mut self, t: &Tensor) {
        self.args.push(&(t.address() as u64).to_ne_bytes());
        self.tensors.push(format!("{t:?}"));
    }

    /// A tensor that the kernel writes.
    ///
    /// # Panics
    /// If its buffer is shared: then somebody still reads it.
    pub fn out(mut self, t: &mut Tensor) -> Self {
        assert!(t.is_unique(), "{}: writing to a shared buffer", self.kernel);
        self.tensor(t);
        self
    }

    /// A tensor that the kernel writes, if there is one; else null.
    pub fn out_opt(self, t: Option<&mut Tensor>) -> Self {
        match t {
            Some(t) => self.out(t),
            None => self.null(),
        }
    }

    /// A tensor that the kernel reads.
    pub fn arg(mut self, t: &Tensor) -> Self {
        self.tensor(t);
        self
    }

    /// A tensor that the kernel reads, if there is one; else null.
    pub fn opt(self, t: Option<&Tensor>) -> Self {
        match t {
            Some(t) => self.arg(t),
            None => self.null(),
        }
    }

    fn null(mut self) -> Self {
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
        let run = unsafe { self.gpu.driver.launch(&self.kernel, &self.args, grid) };
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
