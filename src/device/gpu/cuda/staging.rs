//! Copies between host and device that nobody waits for.
//!
//! Uploads go through pinned slots. Large ones (a batch of images) cross the bus on a stream of their own into a device
//! buffer, while the step before still computes, and are put in place on the compute stream; small ones go there at once.
//! Small results come back into pinned slots and are read when they are asked for.

use std::cell::{Cell, RefCell};
use std::ptr;
use std::rc::Rc;

use cudarc::driver::sys;

use super::context::check;
use crate::device::gpu::driver::Later;
use crate::error::Result;

/// Uploads up to this go through the small slots.
const SMALL_BYTES: usize = 64 * 1024;
/// How many small uploads may be under way: those of several steps.
const SMALL_SLOTS: usize = 64;
/// Large uploads are cut into pieces of this: more than a batch of 8 images of 448 pixels.
const LARGE_BYTES: usize = 16 << 20;
/// One on the bus while the other is put in place.
const LARGE_SLOTS: usize = 2;
/// Results on their way without new memory: the five of a step, twice. Steps of several passes make more slots, which stay.
const RESULT_SLOTS: usize = 16;
/// Size of a result.
const RESULT_BYTES: usize = 4 * 1024;

/// Pinned memory.
struct Pinned(*mut u8);

impl Pinned {
    fn new(bytes: usize) -> Result<Pinned> {
        let mut ptr = ptr::null_mut();
        // SAFETY: writes one address.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut ptr, bytes, 0) })?;
        Ok(Pinned(ptr.cast()))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: from cuMemHostAlloc, freed once.
        unsafe { sys::cuMemFreeHost(self.0.cast()) };
    }
}

struct Event(sys::CUevent);

impl Event {
    fn new() -> Result<Event> {
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes one handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Event(event))
    }

    fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: both handles are ours.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream) })
    }

    /// The host waits. At once if it was never recorded.
    fn wait(&self) -> Result<()> {
        // SAFETY: the handle is ours.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.0) })
    }

    /// A stream waits.
    fn hold(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: both handles are ours.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, self.0, 0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: from cuEventCreate, destroyed once.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// A pinned buffer and when its copy is through.
struct Slot {
    host: Pinned,
    copied: Event,
}

impl Slot {
    fn new(bytes: usize) -> Result<Slot> {
        Ok(Slot { host: Pinned::new(bytes)?, copied: Event::new()? })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = self.copied.wait(); // before the memory goes
    }
}

struct LargeSlot {
    slot: Slot,
    device: sys::CUdeviceptr,
    /// The buffer has been put in place: the next piece may overwrite it.
    placed: Event,
}

impl Drop for LargeSlot {
    fn drop(&mut self) {
        // SAFETY: from cuMemAlloc, freed once; the driver waits for what uses it.
        unsafe { sys::cuMemFree_v2(self.device) };
    }
}

pub(super) struct Staging {
    compute: sys::CUstream,
    copies: sys::CUstream,
    small: Vec<Slot>,
    /// Made at the first large upload.
    large: RefCell<Vec<LargeSlot>>,
    results: RefCell<Vec<Rc<Slot>>>,
    next: Cell<[usize; 2]>,
}

impl Staging {
    pub(super) fn new(compute: sys::CUstream) -> Result<Staging> {
        let mut copies = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut copies, flags) })?;
        Ok(Staging {
            compute,
            copies,
            small: (0..SMALL_SLOTS).map(|_| Slot::new(SMALL_BYTES)).collect::<Result<_>>()?,
            large: RefCell::new(Vec::new()),
            results: RefCell::new(
                (0..RESULT_SLOTS).map(|_| Slot::new(RESULT_BYTES).map(Rc::new)).collect::<Result<_>>()?,
            ),
            next: Cell::new([0; 2]),
        })
    }

    fn take(&self, ring: usize, slots: usize) -> usize {
        let mut next = self.next.get();
        let i = next[ring] % slots;
        next[ring] = i + 1;
        self.next.set(next);
        i
    }

    /// # Safety
    /// `target` has room for `data` and is memory of this device.
    pub(super) unsafe fn upload(&self, target: sys::CUdeviceptr, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        if data.len() <= SMALL_BYTES {
            let slot = &self.small[self.take(0, SMALL_SLOTS)];
            slot.copied.wait()?;
            // SAFETY: the slot holds SMALL_BYTES and no copy reads it any more (line above); `target` by the caller's promise.
            unsafe {
                slot.host.0.copy_from_nonoverlapping(data.as_ptr(), data.len());
                let copied = sys::cuMemcpyHtoDAsync_v2(target, slot.host.0.cast(), data.len(), self.compute);
                check("cuMemcpyHtoDAsync", copied)?;
            }
            return slot.copied.record(self.compute);
        }
        let mut large = self.large.borrow_mut();
        while large.len() < LARGE_SLOTS {
            let (slot, placed) = (Slot::new(LARGE_BYTES)?, Event::new()?);
            let mut device = 0;
            // SAFETY: writes one address.
            check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut device, LARGE_BYTES) })?;
            large.push(LargeSlot { slot, device, placed });
        }
        for (i, piece) in data.chunks(LARGE_BYTES).enumerate() {
            let to = target + (i * LARGE_BYTES) as sys::CUdeviceptr;
            let LargeSlot { slot, device, placed } = &large[self.take(1, LARGE_SLOTS)];
            slot.copied.wait()?;
            // SAFETY: host and device buffer hold LARGE_BYTES; the host buffer is free (line above), the device buffer when
            // `placed`; `to` by the caller's promise.
            unsafe {
                slot.host.0.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                placed.hold(self.copies)?;
                let copied = sys::cuMemcpyHtoDAsync_v2(*device, slot.host.0.cast(), piece.len(), self.copies);
                check("cuMemcpyHtoDAsync", copied)?;
                slot.copied.record(self.copies)?;
                slot.copied.hold(self.compute)?;
                let put = sys::cuMemcpyDtoDAsync_v2(to, *device, piece.len(), self.compute);
                check("cuMemcpyDtoDAsync", put)?;
            }
            placed.record(self.compute)?;
        }
        Ok(())
    }

    /// # Safety
    /// `source` is memory of this device of at least `bytes`.
    pub(super) unsafe fn read_later(&self, source: sys::CUdeviceptr, bytes: usize) -> Result<Later> {
        assert!(bytes <= RESULT_BYTES, "cuda: a late result of {bytes} bytes");
        let mut results = self.results.borrow_mut();
        let free = results.iter().find(|slot| Rc::strong_count(slot) == 1).cloned();
        let slot = match free {
            Some(slot) => slot,
            None => {
                results.push(Rc::new(Slot::new(RESULT_BYTES)?));
                results.last().expect("just made").clone()
            }
        };
        slot.copied.wait()?; // of a result that nobody asked for
        // SAFETY: the slot holds RESULT_BYTES, and nobody else has it (lines above); `source` by the caller's promise.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(slot.host.0.cast(), source, bytes, self.compute) };
        check("cuMemcpyDtoHAsync", copied)?;
        slot.copied.record(self.compute)?;
        Ok(Box::new(move || {
            slot.copied.wait()?;
            // SAFETY: the copy of `bytes` into the slot is through (line above).
            Ok(unsafe { std::slice::from_raw_parts(slot.host.0, bytes) }.to_vec())
        }))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: from cuStreamCreate, destroyed once, when nothing runs on it.
        unsafe {
            sys::cuStreamSynchronize(self.copies);
            sys::cuStreamDestroy_v2(self.copies);
        }
    }
}
