//! Memory of the CPU device: heap buffers outside a step, planned offsets of one arena inside it.

use std::alloc::{self, Layout};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use super::plan::{StepPlan, TraceId, Tracer};
use super::{ALIGN_BYTES, scope};
use crate::error::{Error, Result};

/// State of the CPU device.
#[derive(Default)]
pub struct Cpu {
    arena: RefCell<Option<Rc<Block>>>,
    running: RefCell<Option<Running>>,
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

impl Cpu {
    pub(super) fn persistent_bytes(&self) -> usize {
        self.persistent.get()
    }

    pub(super) fn high_water(&self) -> usize {
        self.high_water.get()
    }
}

/// One heap allocation.
struct Block {
    ptr: NonNull<u8>,
    layout: Layout,
}

impl Block {
    /// Memory whose contents are not set. `what` it is for is said where there is none.
    fn new(bytes: usize, what: &str) -> Result<Block> {
        let block = Layout::from_size_align(bytes.max(1), ALIGN_BYTES).ok().and_then(|layout| {
            // SAFETY: the layout's size is at least 1 (line above), as `alloc::alloc` demands.
            let raw = unsafe { alloc::alloc(layout) };
            Some(Block { ptr: NonNull::new(raw)?, layout })
        });
        block.ok_or_else(|| Error::Device {
            what: "cpu".into(),
            message: format!(
                "no memory for {bytes} bytes ({:.1} GiB), {what}: \
                 take smaller micro-batches or images, or a machine with more memory",
                bytes as f64 / f64::from(1 << 30),
            ),
        })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from `alloc::alloc` with this very layout in `new`, and is freed once, here.
        unsafe { alloc::dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

/// Contiguous memory of a tensor; returns to where it came from when dropped.
pub struct Buf {
    ptr: NonNull<u8>,
    bytes: usize,
    home: Home,
}

enum Home {
    Heap { _block: Block, persistent: Rc<Cell<usize>> },
    Arena { cpu: Rc<Cpu>, n: usize, _arena: Rc<Block> },
    Plan { tracer: Rc<Tracer>, id: Option<TraceId> },
    Piece(#[allow(dead_code, reason = "keeps the memory alive")] Rc<Buf>),
}

impl Buf {
    pub(super) fn planned(tracer: Rc<Tracer>, id: Option<TraceId>, bytes: usize) -> Buf {
        Buf { ptr: NonNull::dangling(), bytes, home: Home::Plan { tracer, id } }
    }

    fn is_planned(&self) -> bool {
        match &self.home {
            Home::Plan { .. } => true,
            Home::Piece(whole) => whole.is_planned(),
            _ => false,
        }
    }

    /// The contents.
    ///
    /// # Panics
    /// On the plan device, which has no contents.
    pub fn bytes(&self) -> &[u8] {
        assert!(!self.is_planned(), "device: the plan device has no data to read");
        // SAFETY: `ptr` is valid for `bytes` for as long as `home` lives: `alloc` and `piece` checked the range against the
        // block, u8 has no invalid values and the blocks were written by `fresh`. Exclusive writers hold `&mut Buf`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    /// The contents, to be written.
    ///
    /// # Panics
    /// On the plan device.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(!self.is_planned(), "device: the plan device has no data to write");
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
            Home::Heap { persistent, .. } => persistent.set(persistent.get() - self.bytes),
            Home::Arena { cpu, n, .. } => {
                cpu.live.set(cpu.live.get() - 1);
                // None: the step is over, and `run` has seen that this buffer was left behind.
                if let Some(run) = cpu.running.borrow_mut().as_mut() {
                    run.free(*n);
                }
            }
            Home::Plan { tracer, id } => tracer.free(*id, self.bytes),
            Home::Piece(_) => {}
        }
    }
}

/// Memory outside or inside a step.
pub(super) fn alloc(cpu: &Rc<Cpu>, bytes: usize) -> Result<Buf> {
    let mut running = cpu.running.borrow_mut();
    let Some(run) = running.as_mut() else {
        let block = Block::new(bytes, "a tensor outside steps")?;
        cpu.persistent.set(cpu.persistent.get() + bytes);
        let home = Home::Heap { persistent: cpu.persistent.clone(), _block: block };
        let Home::Heap { _block: block, .. } = &home else { unreachable!("just made") };
        return Ok(fresh(block.ptr, bytes, home));
    };
    let (n, offset) = run.alloc(bytes)?;
    let end = offset.checked_add(bytes);
    assert!(end.is_some_and(|end| end <= run.arena.layout.size()), "arena: a plan larger than its arena");
    // SAFETY: offset + bytes lies inside the arena's block, asserted on the line above.
    let ptr = unsafe { run.arena.ptr.add(offset) };
    cpu.live.set(cpu.live.get() + 1);
    cpu.high_water.set(cpu.high_water.get().max(offset + bytes.next_multiple_of(ALIGN_BYTES)));
    let home = Home::Arena { cpu: cpu.clone(), n, _arena: run.arena.clone() };
    Ok(fresh(ptr, bytes, home))
}

/// Fresh memory holds a signalling pattern in debug builds, so that reading before writing shows as NaN. In release
/// builds it holds whatever an earlier tensor left there (initialised memory: the arena is zeroed once when it is made).
fn fresh(ptr: NonNull<u8>, bytes: usize, home: Home) -> Buf {
    let poison = match &home {
        Home::Heap { .. } => true,
        _ => cfg!(debug_assertions) || scope::poison_enabled(),
    };
    if poison {
        // SAFETY: `ptr` is valid for `bytes` writes: `alloc` made or checked the range just before.
        unsafe { ptr.as_ptr().write_bytes(0xFF, bytes) };
    }
    Buf { ptr, bytes, home }
}

/// Bytes `offset..offset + bytes` of `whole`.
pub(super) fn piece(whole: &Rc<Buf>, offset: usize, bytes: usize) -> Buf {
    assert!(offset.checked_add(bytes).is_some_and(|end| end <= whole.bytes), "arena: a piece beyond its block");
    // SAFETY: inside the block, asserted above (a dangling planned pointer is never read: `is_planned`); wrapping_add
    // keeps even that case defined.
    let ptr = NonNull::new(whole.ptr.as_ptr().wrapping_add(offset)).expect("arena: a null piece");
    Buf { ptr, bytes, home: Home::Piece(whole.clone()) }
}

/// Runs a step under its plan: see [`Running`].
pub(super) fn run<R>(cpu: &Rc<Cpu>, plan: &Rc<StepPlan>, step: impl FnOnce() -> Result<R>) -> Result<R> {
    if cpu.running.borrow().is_some() {
        return Err(Error::Plan { message: "a step inside a step".into() });
    }
    if cpu.live.get() != 0 {
        let message = format!("{} buffers of an earlier step are still held: drop them first", cpu.live.get());
        return Err(Error::Plan { message });
    }
    reserve(cpu, plan.peak_bytes())?;
    let arena = cpu.arena.borrow().clone().expect("arena: reserved above");
    *cpu.running.borrow_mut() = Some(Running { plan: plan.clone(), arena, next: 0, clock: 0, departed: None });
    let guard = StepGuard(cpu);
    let out = step()?;
    let ran = cpu.running.borrow_mut().take().expect("arena: the step under way");
    drop(guard);
    if let Some(message) = ran.departed {
        return Err(Error::Plan { message });
    }
    if ran.next != plan.allocs().len() {
        return Err(Error::Plan {
            message: format!("the step made {} allocations, planned {}", ran.next, plan.allocs().len()),
        });
    }
    if cpu.live.get() != 0 {
        return Err(Error::Plan { message: format!("the step left {} buffers behind", cpu.live.get()) });
    }
    Ok(out)
}

/// Ends the step also when it fails.
struct StepGuard<'a>(&'a Cpu);

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        *self.0.running.borrow_mut() = None;
    }
}

/// Makes the arena at once at its final size, so that growing never holds two.
pub(super) fn reserve(cpu: &Cpu, bytes: usize) -> Result<()> {
    let mut slot = cpu.arena.borrow_mut();
    if slot.as_ref().is_none_or(|a| a.layout.size() < bytes) {
        *slot = None; // free the old one first: two arenas at once would not be the plan
        let block = Block::new(bytes, "the planned arena of a step")?;
        // SAFETY: the block was just made with at least `bytes` bytes.
        unsafe { block.ptr.as_ptr().write_bytes(0, bytes) };
        *slot = Some(Rc::new(block));
        cpu.high_water.set(0);
    }
    Ok(())
}
