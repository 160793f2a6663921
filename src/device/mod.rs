//! Devices: where tensors live and where their memory comes from.
//!
//! [`Device::Cpu`] and [`Device::Cuda`] compute; [`Device::Plan`] has shapes and no data: running a step on it gives the
//! step's memory plan.
//! Ops match the device once, inside the op, with `on_device!`. Nothing above `ops` knows which one it runs on.

mod arena;
pub mod choice;
pub mod gpu;
mod plan;
mod scope;
mod trace;

use std::fmt;
use std::rc::Rc;

pub use crate::cpu::ALIGN_BYTES;
pub use arena::Buf;
pub use gpu::Gpu;
pub use gpu::driver::Target;
pub use plan::{LiveAtPeak, StepPlan};
pub use scope::{OpTime, Scope, checks_finite, current as current_scope, op_times, profile_enabled, reset_op_times};

use crate::dtype::DType;
use crate::error::{Error, Result};

/// A place for tensors.
#[derive(Clone)]
pub enum Device {
    /// The host: f32 arithmetic with rayon threads.
    Cpu(Rc<arena::Arena>),
    /// A GPU, or the simulated device.
    Cuda(Rc<Gpu>),
    /// Shapes only: records allocations and frees.
    Plan(Rc<trace::Tracer>),
}

impl Device {
    /// A new CPU device with an empty arena.
    pub fn cpu() -> Device {
        Device::Cpu(Rc::new(arena::Arena::default()))
    }

    /// A new simulated device, whose threads run in the order that `seed` gives (0: ascending).
    #[cfg(feature = "sim")]
    pub fn sim(seed: u64) -> Device {
        Device::Cuda(Gpu::simulated(seed))
    }

    /// The `index`-th NVIDIA GPU.
    ///
    /// Errors: `Device` if there is no driver, no such device, or a library is missing.
    #[cfg(feature = "cuda-driver")]
    pub fn cuda(index: usize) -> Result<Device> {
        Ok(Device::Cuda(Gpu::cuda(index)?))
    }

    /// A new plan device that plans for the CPU.
    pub fn plan() -> Device {
        Device::plan_for(Target::Cpu)
    }

    /// A new plan device that plans for a kind of device.
    pub fn plan_for(target: Target) -> Device {
        let best = if target == Target::Cuda { DType::BF16 } else { DType::F32 };
        Device::Plan(Rc::new(trace::Tracer::new(target, best)))
    }

    /// A new plan device that plans for this one.
    pub fn planner(&self) -> Device {
        Device::Plan(Rc::new(trace::Tracer::new(self.target(), self.best_float())))
    }

    /// What the workspaces of an op are for: a plan device answers for the device that it plans for.
    pub fn target(&self) -> Target {
        match self {
            Device::Cpu(_) => Target::Cpu,
            Device::Cuda(gpu) => gpu.target(),
            Device::Plan(tracer) => tracer.target(),
        }
    }

    /// Whether ops run (or are planned to run) the kernels of kernels/*.cu.
    pub fn runs_kernels(&self) -> bool {
        self.target() != Target::Cpu
    }

    /// The shortest float that it is fast in: bf16 from compute capability 8.0 on (and where a plan is for no GPU in particular), f16 on
    /// older ones, f32 without a GPU.
    pub fn best_float(&self) -> DType {
        #[cfg(feature = "cuda-driver")]
        if let Device::Cuda(gpu) = self
            && let Some(cuda) = gpu.cuda_driver()
        {
            return if cuda.has_bf16() { DType::BF16 } else { DType::F16 };
        }
        match self {
            Device::Plan(tracer) => tracer.best_float(),
            _ => DType::F32,
        }
    }

    /// Free and total bytes of an NVIDIA GPU; none for other devices.
    ///
    /// Errors: `Kernel` if the driver does not say.
    pub fn memory(&self) -> Result<Option<(usize, usize)>> {
        #[cfg(feature = "cuda-driver")]
        if let Device::Cuda(gpu) = self
            && let Some(cuda) = gpu.cuda_driver()
        {
            return cuda.memory().map(Some);
        }
        Ok(None)
    }

    /// The GPU, if it is one.
    ///
    /// # Panics
    /// If it is none: `on_device!` has asked before.
    pub fn gpu(&self) -> &Rc<Gpu> {
        let Device::Cuda(gpu) = self else { panic!("device: {self:?} is no GPU") };
        gpu
    }

    /// False on the plan device: there is nothing to read or write.
    pub fn has_data(&self) -> bool {
        !matches!(self, Device::Plan(_))
    }

    /// The memory that steps are run in; none on the plan device.
    fn arena(&self) -> Option<&Rc<arena::Arena>> {
        match self {
            Device::Cpu(arena) => Some(arena),
            Device::Cuda(gpu) => Some(&gpu.arena),
            Device::Plan(_) => None,
        }
    }

    /// Memory for `bytes`: from the running step's plan, or from the heap outside a step.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<Buf> {
        match self {
            Device::Cpu(arena) => arena::alloc(arena, bytes),
            Device::Cuda(gpu) => arena::alloc(&gpu.arena, bytes),
            Device::Plan(tracer) => Ok(arena::alloc_planned(tracer, bytes)),
        }
    }

    /// One allocation of `total` bytes, cut into aligned pieces of the given sizes.
    pub(crate) fn alloc_split(&self, total: usize, sizes: &[usize]) -> Result<Vec<Buf>> {
        let whole = Rc::new(self.alloc(total)?);
        let mut offset = 0;
        Ok(sizes
            .iter()
            .map(|&bytes| {
                let piece = arena::piece(&whole, offset, bytes);
                offset += bytes.next_multiple_of(ALIGN_BYTES);
                piece
            })
            .collect())
    }

    /// Runs one step. On the plan device the step's plan comes back; elsewhere `plan` is followed to the byte: the
    /// n-th allocation gets the n-th planned offset, and a step that allocates or frees otherwise is an error.
    ///
    /// Errors: `Plan` if the step departs from its plan, leaves memory behind, runs inside another or while memory of an
    /// earlier one is held; `Device` if there is no memory for the arena; whatever `step` returns.
    pub fn step<R>(&self, plan: Option<&Rc<StepPlan>>, step: impl FnOnce() -> Result<R>) -> Result<(R, Rc<StepPlan>)> {
        match self {
            Device::Plan(tracer) => trace::trace(tracer, step),
            Device::Cpu(_) | Device::Cuda(_) => {
                let plan = plan.ok_or_else(|| Error::Plan { message: format!("{self:?} runs planned steps only") })?;
                let out = arena::run(self.arena().expect("device: it computes"), plan, step)?;
                Ok((out, plan.clone()))
            }
        }
    }

    /// As [`Device::step`], for a step that runs many times with the same kernels on the same memory. On a GPU the first run is an
    /// ordinary one (libraries choose their algorithms), the second is recorded, and from then on the recording runs: `step` is
    /// not called any more, and must do nothing on the host but launch. Returns whether it was called.
    ///
    /// Errors: as [`Device::step`]; `Kernel` if a recorded kernel fails.
    pub fn repeat(
        &self,
        recording: &mut Recording,
        plan: Option<&Rc<StepPlan>>,
        step: impl FnOnce() -> Result<()>,
    ) -> Result<(bool, Rc<StepPlan>)> {
        let (Device::Cuda(gpu), Some(plan)) = (self, plan) else {
            return self.step(plan, step).map(|((), plan)| (true, plan));
        };
        arena::reserve(&gpu.arena, plan.peak_bytes())?;
        if recording.generation != gpu.arena.generation() {
            *recording = Recording { generation: gpu.arena.generation(), ..Recording::default() };
        }
        let known = recording.graph.is_some();
        if recording.runs == 0 || !scope::graphs_enabled() {
            arena::run(&gpu.arena, plan, step)?;
        } else {
            if !known {
                let ((), graph) = gpu.record(|| arena::run(&gpu.arena, plan, step))?;
                recording.graph = Some(graph);
            }
            gpu.replay(recording.graph.as_ref().expect("device: recorded above"))?;
        }
        recording.runs += 1;
        Ok((!known, plan.clone()))
    }

    /// Makes the arena at its final size, so that a larger bucket met later never holds two at once.
    ///
    /// Errors: `Device` if there is no memory for it.
    pub fn reserve_arena(&self, bytes: usize) -> Result<()> {
        self.arena().map_or(Ok(()), |arena| arena::reserve(arena, bytes))
    }

    /// Gives the arena's memory back until a step needs it again.
    pub fn release_arena(&self) {
        if let Some(arena) = self.arena() {
            arena::release(arena);
        }
    }

    /// Bytes that live outside steps (parameters, optimizer state, inputs).
    pub fn persistent_bytes(&self) -> usize {
        match self {
            Device::Plan(tracer) => tracer.persistent_bytes(),
            Device::Cpu(arena) => arena.persistent_bytes(),
            Device::Cuda(gpu) => gpu.arena.persistent_bytes(),
        }
    }

    /// Highest byte of the arena that a step has touched since the arena was made, 0 on the plan device.
    pub fn arena_high_water(&self) -> usize {
        self.arena().map_or(0, |arena| arena.high_water())
    }

    /// Names what follows until the guard is dropped: for plans, profiles and errors.
    pub fn enter(&self, name: &str) -> Scope {
        self.enter_scope(name, false)
    }

    /// As [`Device::enter`], for a part of the network: plans say what memory each of these needs.
    pub fn enter_module(&self, name: &str) -> Scope {
        self.enter_scope(name, true)
    }

    fn enter_scope(&self, name: &str, is_module: bool) -> Scope {
        let tracer = match self {
            Device::Cpu(_) | Device::Cuda(_) => None,
            Device::Plan(tracer) => Some(tracer.clone()),
        };
        Scope::enter(name, is_module, tracer)
    }
}

/// A step on its way to being recorded: see [`Device::repeat`].
#[derive(Default)]
pub struct Recording {
    runs: u64,
    generation: u64,
    graph: Option<gpu::Graph>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu(_) => f.write_str("cpu"),
            Device::Cuda(gpu) => gpu.fmt(f),
            Device::Plan(_) => f.write_str("plan"),
        }
    }
}

/// Same device: same arena.
impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Device::Cpu(a), Device::Cpu(b)) => Rc::ptr_eq(a, b),
            (Device::Cuda(a), Device::Cuda(b)) => Rc::ptr_eq(a, b),
            (Device::Plan(a), Device::Plan(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// Dispatches an op: one expression runs on the CPU, one, which gives a `Result`, on a GPU; on the plan device nothing is
/// computed (outputs and workspaces exist already, so their memory is in the plan).
#[macro_export]
macro_rules! on_device {
    ($device:expr, cpu => $cpu:expr, cuda => $cuda:expr $(,)?) => {
        match $device {
            $crate::device::Device::Cpu(_) => $cpu,
            $crate::device::Device::Cuda(_) => $cuda?,
            $crate::device::Device::Plan(_) => {}
        }
    };
}
