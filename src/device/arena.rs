//! Memory of a device: buffers of their own outside a step, planned offsets of one arena inside it.

use std::alloc::{self, Layout};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use super::gpu::driver::Driver;
use super::plan::StepPlan;
use super::scope;
use super::trace::{TraceId, Tracer, note_alloc};
use crate::cpu::ALIGN_BYTES;
use crate::error::{Error, Result};

/// Where memory comes from.
#[derive(Clone, Default)]
enum Memory {
    #[default]
    Host,
    #[cfg_attr(
        not(any(feature = "sim", feature = "cuda-driver")),
        allow(dead_code, reason = "no driver in this build")
    )]
    Gpu(Rc<dyn Driver>),
}

/// The memory of a device.
#[derive(Default)]
pub struct Arena {
    memory: Memory,
    arena: RefCell<Option<Rc<Block>>>,
    running: RefCell<Option<Running>>,
    /// Arenas made so far.
    generation: Cell<u64>,
    live: Cell<usize>,
    high_water: Cell<usize>,
    persistent: Rc<Cell<usize>>,
}

/// A step under way. Its k-th event (allocation or free) must be the k-th of the plan: then the buffers alive are those
/// that the plan has alive, and these do not overlap.
struct Running {
    plan: Rc<StepPlan>,
    arena: Rc<Block>,
    /// Allocations so far.
    next: usize,
    /// Events so far.
    clock: usize,
    /// The first event that is not the plan's; no memory is handed out after it.
    departed: Option<String>,
}

impl Running {
    /// The place of the next allocation.
    fn alloc(&mut self, bytes: usize) -> Result<(usize, usize)> {
        if let Some(message) = &self.departed {
            return Err(Error::Plan { message: message.clone() });
        }
        let (n, now) = (self.next, self.clock);
        self.next += 1;
        self.clock += 1;
        let planned = self.plan.allocs().get(n);
        if let Some(a) = planned.filter(|a| a.bytes == bytes && a.birth == now) {
            return Ok((n, a.offset));
        }
        let planned = planned.map_or("none".into(), |a| format!("{} in {} as event {}", a.bytes, a.scope, a.birth));
        let message = format!(
            "the step departs from its plan at allocation {n} in {}: \
             it wants {bytes} bytes as event {now}, planned {planned}",
            scope::current(),
        );
        self.departed = Some(message.clone());
        Err(Error::Plan { message })
    }

    /// Notes that buffer `n` is free.
    fn free(&mut self, n: usize) {
        let now = self.clock;
        self.clock += 1;
        let planned = &self.plan.allocs()[n];
        if planned.death != now && self.departed.is_none() {
            self.departed = Some(format!(
                "the step departs from its plan in {}: it frees the buffer of {} as event {now}, planned as event {}",
                scope::current(),
                planned.scope,
                planned.death,
            ));
        }
    }
}

impl Arena {
    #[cfg(any(feature = "sim", feature = "cuda-driver"))]
    pub(super) fn on(driver: Rc<dyn Driver>) -> Arena {
        Arena { memory: Memory::Gpu(driver), ..Arena::default() }
    }

    pub(super) fn persistent_bytes(&self) -> usize {
        self.persistent.get()
    }

    /// Changes when the arena moves: what was recorded with the old one must not run again.
    pub(super) fn generation(&self) -> u64 {
        self.generation.get()
    }

    pub(super) fn high_water(&self) -> usize {
        self.high_water.get()
    }
}

/// One allocation.
struct Block {
    ptr: NonNull<u8>,
    bytes: usize,
    memory: Memory,
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), ALIGN_BYTES).ok()
}

impl Block {
    /// Memory whose contents are not set. `what` it is for is said where there is none.
    fn new(memory: &Memory, bytes: usize, what: &str) -> Result<Block> {
        let ptr = match memory {
            Memory::Host => layout(bytes)
                // SAFETY: the layout's size is at least 1 (`layout`), as `alloc::alloc` demands.
                .and_then(|layout| NonNull::new(unsafe { alloc::alloc(layout) }))
                .ok_or_else(|| Error::Device {
                    what: "cpu".into(),
                    message: format!(
                        "no memory for {bytes} bytes ({:.1} GiB), {what}: \
                         take smaller micro-batches or images, or a machine with more memory",
                        bytes as f64 / f64::from(1 << 30),
                    ),
                })?,
            Memory::Gpu(driver) => driver.alloc(bytes.max(1)).map_err(|error| match error {
                Error::Device { what: device, message } => {
                    Error::Device { what: device, message: format!("{message}, for {what}") }
                }
                other => other,
            })?,
        };
        Ok(Block { ptr, bytes, memory: memory.clone() })
    }

    fn fill(&self, ptr: NonNull<u8>, byte: u8, bytes: usize) -> Result<()> {
        match &self.memory {
            Memory::Host => {
                // SAFETY: the callers pass ranges inside the block, which they made or checked just before.
                unsafe { ptr.as_ptr().write_bytes(byte, bytes) };
                Ok(())
            }
            // SAFETY: as above, in the driver's memory.
            Memory::Gpu(driver) => unsafe { driver.fill(ptr, byte, bytes) },
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match &self.memory {
            Memory::Host => {
                let layout = layout(self.bytes).expect("arena: the layout it was made with");
                // SAFETY: `ptr` came from `alloc::alloc` with this very layout in `new`, and is freed once, here.
                unsafe { alloc::dealloc(self.ptr.as_ptr(), layout) }
            }
            // SAFETY: `ptr` came from this driver with this size in `new`, and is freed once, here.
            Memory::Gpu(driver) => unsafe { driver.free(self.ptr, self.bytes.max(1)) },
        }
    }
}

/// Contiguous memory of a tensor; returns to where it came from when dropped.
pub struct Buf {
    ptr: NonNull<u8>,
    bytes: usize,
    home: Home,
}

enum Home {
    Own { block: Block, persistent: Rc<Cell<usize>> },
    Arena { arena: Rc<Arena>, n: usize, block: Rc<Block> },
    Plan { tracer: Rc<Tracer>, id: Option<TraceId> },
    Piece(#[allow(dead_code, reason = "keeps the memory alive")] Rc<Buf>),
}

impl Buf {
    /// The address, of the device that it is on. Not to be used on the plan device.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Whether the host can read and write it: neither a GPU's nor planned.
    fn is_host(&self) -> bool {
        let is_host = |block: &Block| matches!(block.memory, Memory::Host);
        match &self.home {
            Home::Plan { .. } => false,
            Home::Own { block, .. } => is_host(block),
            Home::Arena { block, .. } => is_host(block),
            Home::Piece(whole) => whole.is_host(),
        }
    }

    /// The contents.
    ///
    /// # Panics
    /// On a GPU (copy it: `Tensor::to_vec`) and on the plan device, which has no contents.
    pub fn bytes(&self) -> &[u8] {
        assert!(self.is_host(), "device: only the CPU has data to read in place");
        // SAFETY: `ptr` is valid for `bytes` for as long as `home` lives: `alloc` and `piece` checked the range against the
        // block, u8 has no invalid values and the blocks were written by `fresh`. Exclusive writers hold `&mut Buf`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    /// The contents, to be written.
    ///
    /// # Panics
    /// As [`Buf::bytes`].
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(self.is_host(), "device: only the CPU has data to write in place");
        // SAFETY: as `bytes`; and no other Buf covers this range. A heap buffer has its block to itself, and pieces of one
        // are disjoint by construction in `alloc_split`. In the arena, planned lifetimes that meet in time never overlap in
        // space (every plan passes `StepPlan::verify`, and its buffers are private to `device`); the lifetimes are the
        // planned ones, because `Running` compares each event with the plan before a buffer is handed out and hands out
        // none after one that differs; and no step begins while a buffer of an earlier one lives (`run`).
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        match &self.home {
            Home::Own { persistent, .. } => persistent.set(persistent.get() - self.bytes),
            Home::Arena { arena, n, .. } => {
                arena.live.set(arena.live.get() - 1);
                // None: the step is over, and `run` has seen that this buffer was left behind.
                if let Some(run) = arena.running.borrow_mut().as_mut() {
                    run.free(*n);
                }
            }
            Home::Plan { tracer, id } => tracer.free(*id, self.bytes),
            Home::Piece(_) => {}
        }
    }
}

/// A buffer of the plan device: a size and a lifetime, without memory.
pub(super) fn alloc_planned(tracer: &Rc<Tracer>, bytes: usize) -> Buf {
    let id = note_alloc(tracer, bytes);
    Buf { ptr: NonNull::dangling(), bytes, home: Home::Plan { tracer: tracer.clone(), id } }
}

/// Memory outside or inside a step.
pub(super) fn alloc(arena: &Rc<Arena>, bytes: usize) -> Result<Buf> {
    let mut running = arena.running.borrow_mut();
    let Some(run) = running.as_mut() else {
        let block = Block::new(&arena.memory, bytes, "a tensor outside steps")?;
        let ptr = block.ptr;
        block.fill(ptr, POISON, bytes)?;
        arena.persistent.set(arena.persistent.get() + bytes);
        return Ok(Buf { ptr, bytes, home: Home::Own { block, persistent: arena.persistent.clone() } });
    };
    let (n, offset) = run.alloc(bytes)?;
    let block = run.arena.clone();
    let end = offset.checked_add(bytes);
    assert!(end.is_some_and(|end| end <= block.bytes), "arena: a plan larger than its arena");
    // SAFETY: offset + bytes lies inside the arena's block, asserted on the line above.
    let ptr = unsafe { block.ptr.add(offset) };
    if cfg!(debug_assertions) || scope::poison_enabled() {
        block.fill(ptr, POISON, bytes)?;
    }
    arena.live.set(arena.live.get() + 1);
    arena.high_water.set(arena.high_water.get().max(offset + bytes.next_multiple_of(ALIGN_BYTES)));
    Ok(Buf { ptr, bytes, home: Home::Arena { arena: arena.clone(), n, block } })
}

/// What fresh memory holds outside steps and in debug builds, so that reading before writing shows as NaN. In steps of
/// release builds it holds whatever an earlier tensor left there (initialised memory: the arena is zeroed when it is made).
const POISON: u8 = 0xFF;

/// Bytes `offset..offset + bytes` of `whole`.
pub(super) fn piece(whole: &Rc<Buf>, offset: usize, bytes: usize) -> Buf {
    assert!(offset.checked_add(bytes).is_some_and(|end| end <= whole.bytes), "arena: a piece beyond its block");
    // SAFETY: inside the block, asserted above (a dangling planned pointer is never read: `is_planned`); wrapping_add
    // keeps even that case defined.
    let ptr = NonNull::new(whole.ptr.as_ptr().wrapping_add(offset)).expect("arena: a null piece");
    Buf { ptr, bytes, home: Home::Piece(whole.clone()) }
}

/// Runs a step under its plan: see [`Running`].
pub(super) fn run<R>(device: &Rc<Arena>, plan: &Rc<StepPlan>, step: impl FnOnce() -> Result<R>) -> Result<R> {
    if device.running.borrow().is_some() {
        return Err(Error::Plan { message: "a step inside a step".into() });
    }
    if device.live.get() != 0 {
        let message = format!("{} buffers of an earlier step are still held: drop them first", device.live.get());
        return Err(Error::Plan { message });
    }
    reserve(device, plan.peak_bytes())?;
    let arena = device.arena.borrow().clone().expect("arena: reserved above");
    *device.running.borrow_mut() = Some(Running { plan: plan.clone(), arena, next: 0, clock: 0, departed: None });
    let guard = StepGuard(device);
    let out = step()?;
    let ran = device.running.borrow_mut().take().expect("arena: the step under way");
    drop(guard);
    if let Some(message) = ran.departed {
        return Err(Error::Plan { message });
    }
    if ran.next != plan.allocs().len() {
        return Err(Error::Plan {
            message: format!("the step made {} allocations, planned {}", ran.next, plan.allocs().len()),
        });
    }
    if device.live.get() != 0 {
        return Err(Error::Plan { message: format!("the step left {} buffers behind", device.live.get()) });
    }
    Ok(out)
}

/// Ends the step also when it fails.
struct StepGuard<'a>(&'a Arena);

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        *self.0.running.borrow_mut() = None;
    }
}

/// Gives the arena back; a buffer of a step that is still held keeps it.
pub(super) fn release(device: &Arena) {
    *device.arena.borrow_mut() = None;
    device.high_water.set(0);
}

/// Makes the arena at once at its final size, so that growing never holds two.
pub(super) fn reserve(device: &Arena, bytes: usize) -> Result<()> {
    let mut slot = device.arena.borrow_mut();
    if slot.as_ref().is_none_or(|a| a.bytes < bytes) {
        *slot = None; // free the old one first: two arenas at once would not be the plan
        let block = Block::new(&device.memory, bytes, "the planned arena of a step")?;
        block.fill(block.ptr, 0, bytes)?;
        *slot = Some(Rc::new(block));
        device.generation.set(device.generation.get() + 1);
        device.high_water.set(0);
    }
    Ok(())
}
