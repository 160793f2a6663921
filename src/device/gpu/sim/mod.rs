//! The simulated device: kernels/*.cu compiled as C++ and run on the host, thread by thread, on guarded memory.
//!
//! It shows what a GPU would compute and where a kernel breaks its contract: a missing barrier (other orders of the threads
//! give other results), a write beyond a buffer (guard bands), a read of what nobody wrote (fresh memory is full of NaN),
//! wrong arguments, warps that part ways. It does not show speed, races between blocks or faults of alignment.
//! Convolutions and matrix products, which a GPU leaves to cuDNN and cuBLASLt, run as the CPU's. Main type: [`Sim`].

mod block;

use std::alloc::{self, Layout};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::LazyLock;

use rayon::prelude::*;

use super::driver::{Args, Driver, Graph, Grid, Later, Target};
use super::launch::Operand;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::{Error, Result};
use block::{Job, Runner};

/// Bytes before and behind each allocation, what they hold, and the alignment of an allocation.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xA5;

/// Mirrors `sim::Kernel`.
#[repr(C)]
struct KernelEntry {
    name: *const c_char,
    max_threads: u32,
    arguments: u32,
    argument_bytes: *const u32,
    call: unsafe extern "C" fn(*mut *mut c_void),
    next: *const KernelEntry,
}

unsafe extern "C" {
    fn upres_sim_link() -> i32;
    fn upres_sim_kernels() -> *const KernelEntry;
}

/// One kernel of the table.
#[derive(Clone)]
struct Kernel {
    max_threads: u32,
    argument_bytes: Vec<u32>,
    call: unsafe extern "C" fn(*mut *mut c_void),
}

static KERNELS: LazyLock<HashMap<&'static str, Kernel>> = LazyLock::new(|| {
    let mut table = HashMap::new();
    // SAFETY: the list is made of static objects that are never written after the program's start (kernels/sim/device.h).
    unsafe {
        upres_sim_link();
        let mut entry = upres_sim_kernels();
        while let Some(k) = entry.as_ref() {
            let name = CStr::from_ptr(k.name).to_str().expect("sim: a kernel's name is ASCII");
            let argument_bytes = std::slice::from_raw_parts(k.argument_bytes, k.arguments as usize).to_vec();
            let twice = table.insert(name, Kernel { max_threads: k.max_threads, argument_bytes, call: k.call });
            assert!(twice.is_none(), "sim: two kernels named {name}");
            entry = k.next;
        }
    }
    table
});

thread_local! {
    /// This host thread's: stacks are made once.
    static RUNNER: RefCell<Runner> = RefCell::default();
}

/// Names of all kernels.
pub fn kernels() -> impl Iterator<Item = &'static str> {
    KERNELS.keys().copied()
}

/// Recorded work.
enum Work {
    Kernel { name: String, args: Args, grid: Grid },
    Host(Box<dyn Fn()>),
    Fill { ptr: NonNull<u8>, byte: u8, bytes: usize },
}

/// The simulated device.
pub struct Sim {
    seed: u64,
    launches: Cell<u64>,
    /// Allocations: address and bytes.
    live: RefCell<BTreeMap<usize, usize>>,
    recording: RefCell<Option<Vec<Work>>>,
}

impl Sim {
    pub(super) fn new(seed: u64) -> Sim {
        Sim { seed, launches: Cell::new(0), live: RefCell::default(), recording: RefCell::new(None) }
    }

    /// Runs (or records) a product of the CPU in stream order, what a GPU leaves to a library: `f(out, a, b, workspace)`. Of 16-bit
    /// floats it is computed in f32 and rounded once, as the libraries do.
    pub fn product(
        &self,
        out: &mut dyn Operand,
        a: &dyn Operand,
        b: &dyn Operand,
        ws: &mut dyn Operand,
        f: impl Fn(&mut [f32], &[f32], &[f32], &mut [f32]) + 'static,
    ) {
        assert!(out.is_unique() && ws.is_unique(), "sim: writing to a shared buffer");
        let (out, a, b, ws) = (Slice::of(out), Slice::of(a), Slice::of(b), Slice::of(ws));
        // SAFETY: memory of this device, kept by the arena while a step that holds it can run; out and ws are nobody else's
        // (asserted above).
        let run = move || unsafe {
            if out.dtype == DType::F32 {
                return f(out.write(), a.read(), b.read(), ws.write());
            }
            let mut wide = out.widened();
            f(&mut wide, &a.widened(), &b.widened(), ws.write());
            out.round(&wide);
        };
        match self.recording.borrow_mut().as_mut() {
            Some(work) => work.push(Work::Host(Box::new(run))),
            None => run(),
        }
    }

    fn run(&self, name: &str, args: &Args, grid: Grid) -> Result<()> {
        let fault = |message: String| Err(Error::Kernel { op: name.into(), message });
        let Some(kernel) = KERNELS.get(name) else {
            return fault(format!("no such kernel among the {} compiled", KERNELS.len()));
        };
        if !args.sizes().eq(kernel.argument_bytes.iter().map(|&b| b as usize)) {
            let got: Vec<usize> = args.sizes().collect();
            return fault(format!("arguments of {got:?} bytes, the kernel takes {:?}", kernel.argument_bytes));
        }
        let threads = grid.threads.iter().map(|&t| u64::from(t)).product::<u64>();
        if threads == 0 || threads > u64::from(kernel.max_threads) {
            return fault(format!("blocks of {threads} threads, the kernel takes at most {}", kernel.max_threads));
        }
        let [x, y, z] = grid.blocks;
        if x > i32::MAX as u32 || y > 65_535 || z > 65_535 || grid.shared_bytes > 99 * 1024 {
            return fault("a grid or shared memory beyond what devices allow".into());
        }
        self.launches.set(self.launches.get() + 1);
        let seed = if self.seed == 0 { 0 } else { self.seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ self.launches.get() };
        let job = Job {
            call: kernel.call,
            args: args.addresses(),
            grid: grid.blocks,
            threads: grid.threads,
            shared_bytes: grid.shared_bytes as usize,
            seed,
        };
        let blocks = x as usize * y as usize * z as usize;
        // Blocks in the order of the seed too: the second half first.
        let from = if seed.is_multiple_of(2) { 0 } else { blocks / 2 };
        let all = (0..blocks).into_par_iter().with_min_len(8);
        let ran = all.map(|i| {
            let i = (i + from) % blocks;
            RUNNER
                .with_borrow_mut(|runner| runner.run(&job, i as u64))
                .map_err(|message| format!("block {i}: {message}"))
        });
        match ran.collect::<Result<(), String>>() {
            Ok(()) => self.check_guards().or_else(fault),
            Err(message) => fault(message),
        }
    }

    /// Err if a byte around an allocation has changed; mends it, so that one write is reported once.
    fn check_guards(&self) -> Result<(), String> {
        for (&address, &bytes) in &*self.live.borrow() {
            for (at, place) in [(address - GUARD, "before"), (address + bytes, "behind")] {
                // SAFETY: `alloc` made GUARD bytes on either side of every allocation in `live`.
                let guard = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, GUARD) };
                if let Some(i) = guard.iter().position(|&b| b != GUARD_BYTE) {
                    guard.fill(GUARD_BYTE);
                    let away = if place == "before" { GUARD - i } else { i };
                    return Err(format!("a write {away} bytes {place} a buffer of {bytes} bytes"));
                }
            }
        }
        Ok(())
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(2 * GUARD)?, GUARD).ok()
}

impl Driver for Sim {
    fn target(&self) -> Target {
        Target::Sim
    }

    fn name(&self) -> String {
        "sim".into()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn alloc(&self, bytes: usize) -> Result<NonNull<u8>> {
        // SAFETY: the layout has at least 2 GUARD bytes.
        let block = layout(bytes).and_then(|layout| NonNull::new(unsafe { alloc::alloc(layout) }));
        let Some(block) = block else {
            return Err(Error::Device { what: "sim".into(), message: format!("no memory for {bytes} bytes") });
        };
        // SAFETY: both guards lie in the block of bytes + 2 GUARD bytes just made.
        let ptr = unsafe {
            block.as_ptr().write_bytes(GUARD_BYTE, GUARD);
            block.as_ptr().add(GUARD + bytes).write_bytes(GUARD_BYTE, GUARD);
            block.add(GUARD)
        };
        self.live.borrow_mut().insert(ptr.as_ptr() as usize, bytes);
        Ok(ptr)
    }

    unsafe fn free(&self, ptr: NonNull<u8>, bytes: usize) {
        self.live.borrow_mut().remove(&(ptr.as_ptr() as usize));
        if let Some(layout) = layout(bytes) {
            // SAFETY: `alloc` made this block with this layout, GUARD bytes before `ptr` (the caller's promise).
            unsafe { alloc::dealloc(ptr.as_ptr().sub(GUARD), layout) }
        }
    }

    unsafe fn fill(&self, ptr: NonNull<u8>, byte: u8, bytes: usize) -> Result<()> {
        if let Some(work) = self.recording.borrow_mut().as_mut() {
            work.push(Work::Fill { ptr, byte, bytes });
            return Ok(());
        }
        // SAFETY: the range is this device's (the caller's promise).
        unsafe { ptr.as_ptr().write_bytes(byte, bytes) };
        Ok(())
    }

    unsafe fn upload(&self, ptr: NonNull<u8>, data: &[u8]) -> Result<()> {
        if self.recording.borrow().is_some() {
            return Err(Error::Device { what: "sim".into(), message: "an upload inside a recorded step".into() });
        }
        // SAFETY: the range is this device's (the caller's promise), and the source is not.
        unsafe { ptr.as_ptr().copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(())
    }

    unsafe fn download(&self, data: &mut [u8], ptr: NonNull<u8>) -> Result<()> {
        if self.recording.borrow().is_some() {
            return Err(Error::Device { what: "sim".into(), message: "a download inside a recorded step".into() });
        }
        // SAFETY: as in `upload`.
        unsafe { data.as_mut_ptr().copy_from_nonoverlapping(ptr.as_ptr(), data.len()) };
        Ok(())
    }

    unsafe fn read_later(&self, ptr: NonNull<u8>, bytes: usize) -> Result<Later> {
        let mut data = vec![0; bytes];
        // SAFETY: handed on to the caller.
        unsafe { self.download(&mut data, ptr)? };
        Ok(Box::new(move || Ok(data)))
    }

    unsafe fn launch(&self, kernel: &str, args: &Args, grid: Grid) -> Result<()> {
        if let Some(work) = self.recording.borrow_mut().as_mut() {
            work.push(Work::Kernel { name: kernel.into(), args: args.clone(), grid });
            return Ok(());
        }
        self.run(kernel, args, grid)
    }

    fn begin_recording(&self) -> Result<()> {
        *self.recording.borrow_mut() = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&self) -> Result<Graph> {
        Ok(Rc::new(self.recording.borrow_mut().take().unwrap_or_default()))
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        let work = graph.downcast_ref::<Vec<Work>>().expect("sim: a graph of another driver");
        for work in work {
            match work {
                Work::Kernel { name, args, grid } => self.run(name, args, *grid)?,
                Work::Host(f) => f(),
                // SAFETY: the range was this device's when it was recorded, and the arena still is (`Gpu::replay`).
                Work::Fill { ptr, byte, bytes } => unsafe { self.fill(*ptr, *byte, *bytes)? },
            }
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// The numbers of a tensor of the simulated device, by address: a recorded product runs more than once.
#[derive(Clone, Copy)]
struct Slice {
    ptr: *mut u8,
    len: usize,
    dtype: DType,
}

impl Slice {
    fn of(t: &dyn Operand) -> Slice {
        assert!(t.dtype().is_float(), "sim: a product of {t:?}");
        Slice { ptr: t.address() as *mut u8, len: t.numel(), dtype: t.dtype() }
    }

    /// # Safety
    /// The memory is there and holds f32, and nobody writes to it meanwhile.
    unsafe fn read<'a>(self) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.slice() }
    }

    /// # Safety
    /// As [`Slice::read`], and nobody else reads it meanwhile.
    unsafe fn write<'a>(self) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast(), self.len) }
    }

    /// # Safety
    /// The memory is there and holds elements of `T`, and nobody writes to it meanwhile.
    unsafe fn slice<'a, T>(self) -> &'a [T] {
        // SAFETY: the caller's promise; the arena's buffers begin at multiples of 64 bytes.
        unsafe { std::slice::from_raw_parts(self.ptr.cast(), self.len) }
    }

    /// A copy as f32.
    ///
    /// # Safety
    /// The memory is there, and nobody writes to it meanwhile.
    unsafe fn widened(self) -> Vec<f32> {
        // SAFETY: the caller's promise, and the element type is looked at.
        unsafe {
            match self.dtype {
                DType::F16 => self.slice::<f16>().iter().map(|v| v.to_f32()).collect(),
                DType::BF16 => self.slice::<bf16>().iter().map(|v| v.to_f32()).collect(),
                _ => self.read().to_vec(),
            }
        }
    }

    /// Overwrites 16-bit floats.
    ///
    /// # Safety
    /// As [`Slice::write`].
    unsafe fn round(self, values: &[f32]) {
        // SAFETY: the caller's promise, and the element type is looked at.
        unsafe {
            match self.dtype {
                DType::F16 => {
                    std::slice::from_raw_parts_mut(self.ptr.cast::<f16>(), self.len).convert_from_f32_slice(values)
                }
                _ => std::slice::from_raw_parts_mut(self.ptr.cast::<bf16>(), self.len).convert_from_f32_slice(values),
            }
        }
    }
}
