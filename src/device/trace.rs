//! The plan device: a step that runs on it computes nothing and leaves the size and lifetime of every buffer.
//!
//! Main type: [`Tracer`]. `plan.rs` turns a trace into offsets.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::gpu::driver::Target;
use super::plan::{Alloc, StepPlan};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// State of the plan device.
pub struct Tracer {
    target: Target,
    best_float: DType,
    trace: RefCell<Option<Trace>>,
    /// Traces begun.
    traces: Cell<u64>,
    persistent: Cell<usize>,
    scope: RefCell<Vec<Entered>>,
    /// Scopes entered so far.
    entered: Cell<u64>,
}

/// A scope that has not been left.
#[derive(Clone)]
struct Entered {
    number: u64,
    path: Rc<str>,
    /// `path` without the names of ops.
    module: Rc<str>,
}

/// A step that is being traced.
struct Trace {
    number: u64,
    allocs: Vec<Alloc>,
    /// Number of the scope that asked for each allocation; 0 outside all scopes.
    askers: Vec<u64>,
    /// Events so far.
    clock: usize,
}

/// A buffer of a trace. It may outlive a trace that failed; its free must not count in the next one.
#[derive(Clone, Copy)]
pub(super) struct TraceId {
    trace: u64,
    n: usize,
}

impl Tracer {
    pub(super) fn new(target: Target, best_float: DType) -> Tracer {
        Tracer {
            target,
            best_float,
            trace: RefCell::new(None),
            traces: Cell::new(0),
            persistent: Cell::new(0),
            scope: RefCell::new(Vec::new()),
            entered: Cell::new(0),
        }
    }

    /// Shortest float that the planned device is fast in: see [`crate::device::Device::best_float`].
    pub(super) fn best_float(&self) -> DType {
        self.best_float
    }

    /// The device that the plan is for.
    pub(super) fn target(&self) -> Target {
        self.target
    }

    pub(super) fn persistent_bytes(&self) -> usize {
        self.persistent.get()
    }

    pub(super) fn push_scope(&self, name: &str, is_module: bool) {
        let mut scope = self.scope.borrow_mut();
        let below = |path: &str| if path.is_empty() { name.into() } else { format!("{path}/{name}").into() };
        let (path, module) = scope.last().map_or(("", "".into()), |top| (&*top.path, top.module.clone()));
        let entered = Entered {
            number: self.entered.get() + 1,
            path: below(path),
            module: if is_module { below(&module) } else { module },
        };
        self.entered.set(entered.number);
        scope.push(entered);
    }

    pub(super) fn pop_scope(&self) {
        self.scope.borrow_mut().pop();
    }

    pub(super) fn free(&self, id: Option<TraceId>, bytes: usize) {
        let Some(id) = id else {
            self.persistent.set(self.persistent.get() - bytes);
            return;
        };
        if let Some(trace) = self.trace.borrow_mut().as_mut().filter(|t| t.number == id.trace) {
            let asker = trace.askers[id.n];
            let alloc = &mut trace.allocs[id.n];
            alloc.death = trace.clock;
            alloc.workspace = self.scope.borrow().iter().any(|s| s.number == asker);
            trace.clock += 1;
        }
    }
}

/// Notes an allocation: its place in the running trace, or `None` outside a step, where memory is persistent.
pub(super) fn note_alloc(tracer: &Tracer, bytes: usize) -> Option<TraceId> {
    let mut running = tracer.trace.borrow_mut();
    let Some(trace) = running.as_mut() else {
        tracer.persistent.set(tracer.persistent.get() + bytes);
        return None;
    };
    let outside = || Entered { number: 0, path: "step".into(), module: "".into() };
    let Entered { number, path: scope, module } = tracer.scope.borrow().last().cloned().unwrap_or_else(outside);
    trace.allocs.push(Alloc {
        bytes,
        offset: 0,
        scope,
        module,
        workspace: false,
        birth: trace.clock,
        death: usize::MAX,
    });
    trace.askers.push(number);
    trace.clock += 1;
    Some(TraceId { trace: trace.number, n: trace.allocs.len() - 1 })
}

/// Ends the trace also when its step fails.
struct TraceGuard<'a>(&'a Tracer);

impl Drop for TraceGuard<'_> {
    fn drop(&mut self) {
        *self.0.trace.borrow_mut() = None;
    }
}

/// Runs a step for its allocations and frees.
pub(super) fn trace<R>(tracer: &Rc<Tracer>, step: impl FnOnce() -> Result<R>) -> Result<(R, Rc<StepPlan>)> {
    if tracer.trace.borrow().is_some() {
        return Err(Error::Plan { message: "a step inside a step".into() });
    }
    let number = tracer.traces.get() + 1;
    tracer.traces.set(number);
    *tracer.trace.borrow_mut() = Some(Trace { number, allocs: Vec::new(), askers: Vec::new(), clock: 0 });
    let guard = TraceGuard(tracer);
    let out = step()?;
    let allocs = tracer.trace.borrow_mut().take().map_or_else(Vec::new, |t| t.allocs);
    drop(guard);
    if let Some(a) = allocs.iter().find(|a| a.death == usize::MAX) {
        return Err(Error::Plan { message: format!("the step left a buffer of {} behind", a.scope) });
    }
    let plan = StepPlan::place(allocs);
    plan.verify()?;
    Ok((out, Rc::new(plan)))
}
