//! One block of the simulated device: its threads are coroutines, which run in a seeded order and meet at barriers and in
//! warp functions.
//!
//! A thread runs until it waits. When nobody can run, all that wait at the block's barrier go on; lanes of a warp function
//! go on as soon as every lane of its mask has come. What a real device would answer with a hang or with garbage is an
//! error here: lanes that meet in different functions, a lane that left although a mask names it, shared memory written
//! beyond a variable. Main type: [`Runner`].

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};

/// Enough for a kernel's frame; the page below it faults.
const STACK_BYTES: usize = 128 * 1024;
const WARP: usize = 32;
/// Bytes of a guard behind each shared variable, and what they hold.
const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xA5;
/// What a kernel may declare, and what a launch may ask for beyond that without opting in.
const STATIC_SHARED_MAX: usize = 48 * 1024;

/// Mirrors `sim::Wait`.
const BARRIER_OR: u32 = 1;
const BARRIER_COUNT: u32 = 3;
const SYNCWARP: u32 = 16;

/// Mirrors `sim::Place`.
#[repr(C)]
pub(super) struct Place {
    thread: [u32; 3],
    block: [u32; 3],
    block_dim: [u32; 3],
    grid_dim: [u32; 3],
}

unsafe extern "C" {
    fn upres_sim_place(place: *const Place);
    fn upres_sim_thread(x: u32, y: u32, z: u32);
}

/// What all blocks of a launch share.
pub(super) struct Job {
    pub call: unsafe extern "C" fn(*mut *mut c_void),
    /// Addresses of the arguments.
    pub args: Vec<*mut c_void>,
    pub grid: [u32; 3],
    pub threads: [u32; 3],
    pub shared_bytes: usize,
    /// Order of the threads: 0 for ascending.
    pub seed: u64,
}

// SAFETY: the arguments are read only, by every block, and outlive the launch (`Sim::launch` owns them); what they point to
// on the device is shared by the threads of a grid by definition.
unsafe impl Sync for Job {}

type Thread = Coroutine<(), (), (), DefaultStack>;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    Waits { kind: u32, mask: u32, value: u64 },
    Left,
}

struct Slot {
    yielder: *const Yielder<(), ()>,
    state: State,
}

/// A variable in shared memory.
struct Variable {
    tag: *const c_void,
    offset: usize,
    bytes: usize,
}

#[derive(Default)]
struct Block {
    current: usize,
    slots: Vec<Slot>,
    /// By warp, the values of the last warp function.
    values: Vec<[u64; WARP]>,
    /// By warp, the lanes that wait in a warp function.
    arrived: Vec<u32>,
    /// The sum of the last barrier.
    total: [u64; 1],
    memory: Vec<u128>,
    used: usize,
    variables: Vec<Variable>,
    dynamic: usize,
    fault: Option<String>,
}

thread_local! {
    /// The block that this host thread runs.
    static BLOCK: Cell<*mut Block> = const { Cell::new(ptr::null_mut()) };
}

/// Runs blocks on one host thread; keeps their stacks.
#[derive(Default)]
pub(super) struct Runner {
    stacks: Vec<DefaultStack>,
    block: Block,
}

impl Runner {
    /// Runs block `index` of a launch.
    pub(super) fn run(&mut self, job: &Job, index: u64) -> Result<(), String> {
        let [gx, gy, _] = job.grid.map(u64::from);
        let block = [(index % gx) as u32, (index / gx % gy) as u32, (index / gx / gy) as u32];
        let place = Place { thread: [0; 3], block, block_dim: job.threads, grid_dim: job.grid };
        // SAFETY: copies a struct of the layout of sim::Place.
        unsafe { upres_sim_place(&place) };
        let count = job.threads.iter().product::<u32>() as usize;
        self.block.begin(count, job.shared_bytes);
        let state: *mut Block = &mut self.block;
        BLOCK.set(state);
        let mut threads: Vec<Option<Thread>> = (0..count).map(|t| Some(self.thread(job, t, state))).collect();
        let mut order = Order::new(job.seed, index);
        let mut ready: Vec<usize> = (0..count).collect();
        while !ready.is_empty() && self.block.fault.is_none() {
            order.shuffle(&mut ready);
            let mut next = Vec::new();
            for &t in &ready {
                let coroutine = threads[t].as_mut().expect("sim: a thread that has not left");
                let [x, y, _] = job.threads.map(|n| n as usize);
                // SAFETY: sets the coordinates of the thread that is resumed on the next lines.
                unsafe { upres_sim_thread((t % x) as u32, (t / x % y) as u32, (t / x / y) as u32) };
                self.block.current = t;
                self.block.slots[t].state = State::Ready;
                if coroutine.resume(()).as_return().is_some() {
                    self.block.slots[t].state = State::Left;
                    self.stacks.extend(threads[t].take().map(Coroutine::into_stack));
                }
                self.block.release_warp(t, &mut next);
                if self.block.fault.is_some() {
                    break;
                }
            }
            if next.is_empty() && self.block.fault.is_none() {
                self.block.release_barrier(&mut next);
            }
            ready = next;
        }
        BLOCK.set(ptr::null_mut());
        for mut left in threads.into_iter().flatten() {
            // SAFETY: a thread that waits is inside kernel code, whose frames own nothing (C++ without destructors).
            unsafe { left.force_reset() };
            self.stacks.push(left.into_stack());
        }
        self.block.end()
    }

    fn thread(&mut self, job: &Job, t: usize, block: *mut Block) -> Thread {
        let stack =
            self.stacks.pop().unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("sim: memory for a stack"));
        let (call, args) = (job.call, job.args.as_ptr().cast_mut());
        Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
            // SAFETY: `block` is the Runner's, which outlives the coroutine and is not borrowed while a thread runs; the
            // arguments are those that `Sim::launch` checked against the kernel's.
            unsafe {
                (&mut (*block).slots)[t].yielder = yielder;
                call(args);
            }
        })
    }
}

impl Block {
    fn begin(&mut self, threads: usize, dynamic_bytes: usize) {
        self.slots.clear();
        self.slots.resize_with(threads, || Slot { yielder: ptr::null(), state: State::Ready });
        self.values.clear();
        self.values.resize(threads.div_ceil(WARP), [0; WARP]);
        self.arrived.clear();
        self.arrived.resize(threads.div_ceil(WARP), 0);
        self.variables.clear();
        (self.used, self.fault) = (0, None);
        // Never grows while a block runs: threads hold addresses.
        let most = STATIC_SHARED_MAX + dynamic_bytes + 64 * GUARD;
        if self.memory.len() * 16 < most {
            self.memory = vec![0; most.div_ceil(16)];
        }
        self.dynamic = self.variable(ptr::null(), dynamic_bytes);
    }

    /// The offset of a variable: poisoned when it is first seen, with a guard behind it.
    fn variable(&mut self, tag: *const c_void, bytes: usize) -> usize {
        if let Some(v) = self.variables.iter().find(|v| v.tag == tag) {
            return v.offset;
        }
        let (offset, end) = (self.used, self.used + bytes);
        self.used = (end + GUARD).next_multiple_of(16);
        let statics: usize = self.variables.iter().filter(|v| !v.tag.is_null()).map(|v| v.bytes).sum();
        if !tag.is_null() && statics + bytes > STATIC_SHARED_MAX || self.used > self.memory.len() * 16 {
            self.fault = Some(format!("more than {STATIC_SHARED_MAX} bytes of shared memory"));
            self.used = 0;
            return 0;
        }
        let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut self.memory);
        memory[offset..end].fill(0xFF);
        memory[end..self.used].fill(GUARD_BYTE);
        self.variables.push(Variable { tag, offset, bytes });
        offset
    }

    /// Lets the lanes of `t`'s warp function go on if all have come.
    fn release_warp(&mut self, t: usize, next: &mut Vec<usize>) {
        let State::Waits { kind, mask, .. } = self.slots[t].state else { return };
        if kind < SYNCWARP {
            return;
        }
        let warp = t / WARP;
        self.arrived[warp] += 1;
        if self.arrived[warp] < mask.count_ones().min((self.slots.len() - warp * WARP) as u32) {
            return;
        }
        if mask >> (t % WARP) & 1 == 0 {
            return self.complain(t, "a warp function whose mask does not name the calling lane");
        }
        let lanes = || (0..WARP).filter(|lane| mask >> lane & 1 == 1).map(|lane| warp * WARP + lane);
        for lane in lanes() {
            match self.slots.get(lane).map(|s| s.state) {
                None => return self.complain(t, "a warp function whose mask names lanes beyond the block"),
                Some(State::Waits { kind: k, mask: m, .. }) if (k, m) == (kind, mask) => {}
                Some(_) => return, // comes later, or never: then `release_barrier` complains
            }
        }
        self.arrived[warp] -= mask.count_ones();
        for lane in lanes() {
            let State::Waits { value, .. } = self.slots[lane].state else { continue };
            self.values[warp][lane % WARP] = value;
            self.slots[lane].state = State::Ready;
            next.push(lane);
        }
    }

    /// Nobody can run: lets the threads at the block's barrier go on.
    fn release_barrier(&mut self, next: &mut Vec<usize>) {
        let mut first = None;
        self.total = [0];
        for t in 0..self.slots.len() {
            let State::Waits { kind, value, .. } = self.slots[t].state else { continue };
            if kind >= SYNCWARP {
                return self.complain(t, "a warp function waits for lanes that have left or wait elsewhere");
            }
            if *first.get_or_insert(kind) != kind {
                return self.complain(t, "threads of a block meet in different barriers");
            }
            debug_assert!(kind <= BARRIER_COUNT && (kind != BARRIER_OR || value <= 1));
            self.total[0] += value;
            self.slots[t].state = State::Ready;
            next.push(t);
        }
    }

    fn complain(&mut self, t: usize, what: &str) {
        self.fault.get_or_insert_with(|| format!("thread {t}: {what}"));
    }

    /// The fault of the block, if any, and a look at the guards.
    fn end(&mut self) -> Result<(), String> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let memory: &[u8] = bytemuck::cast_slice(&self.memory);
        for v in &self.variables {
            if memory[v.offset + v.bytes..][..GUARD].iter().any(|&b| b != GUARD_BYTE) {
                return Err(format!("a write beyond a shared variable of {} bytes", v.bytes));
            }
        }
        Ok(())
    }
}

/// Called by a kernel: see kernels/sim/device.h.
#[unsafe(no_mangle)]
extern "C" fn upres_sim_wait(kind: u32, mask: u32, value: u64) -> *const u64 {
    let block = BLOCK.get();
    // SAFETY: kernels run only inside `Runner::run`, which set BLOCK to its own block and holds no reference into it while
    // a thread runs; the yielder was stored by this very coroutine, whose stack it lives on.
    unsafe {
        let t = (*block).current;
        (&mut (*block).slots)[t].state = State::Waits { kind, mask, value };
        let yielder = (&(*block).slots)[t].yielder;
        (*yielder).suspend(());
        if kind < SYNCWARP { (&raw const (*block).total).cast() } else { (&(*block).values)[t / WARP].as_ptr() }
    }
}

/// Called by a kernel: see kernels/sim/device.h.
#[unsafe(no_mangle)]
extern "C" fn upres_sim_shared(tag: *const c_void, bytes: u64) -> *mut c_void {
    // SAFETY: as in `upres_sim_wait`; `variable` keeps offsets inside the memory, which does not move while a block runs.
    unsafe {
        let block = &mut *BLOCK.get();
        let offset = block.variable(tag, bytes as usize);
        block.memory.as_mut_ptr().cast::<u8>().add(offset).cast()
    }
}

/// Called by a kernel: see kernels/sim/device.h.
#[unsafe(no_mangle)]
extern "C" fn upres_sim_dynamic_shared() -> *mut c_void {
    // SAFETY: as in `upres_sim_shared`.
    unsafe {
        let block = &mut *BLOCK.get();
        block.memory.as_mut_ptr().cast::<u8>().add(block.dynamic).cast()
    }
}

/// Called by a kernel: see kernels/sim/device.h.
#[unsafe(no_mangle)]
extern "C" fn upres_sim_fault(message: *const c_char) {
    // SAFETY: as in `upres_sim_wait`; the message is a literal.
    unsafe {
        let block = &mut *BLOCK.get();
        let (t, message) = (block.current, CStr::from_ptr(message).to_string_lossy());
        block.complain(t, &message);
    }
}

/// The order of the threads of one block.
struct Order(u64);

impl Order {
    fn new(seed: u64, block: u64) -> Order {
        Order(if seed == 0 { 0 } else { (seed ^ block.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1 })
    }

    /// xorshift64* (Vigna 2016): the order must be varied, not good.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn shuffle(&mut self, threads: &mut [usize]) {
        if self.0 == 0 {
            return threads.sort_unstable();
        }
        for i in (1..threads.len()).rev() {
            threads.swap(i, (self.next() >> 32) as usize % (i + 1));
        }
    }
}
