//! Named ranges: for plans (who owns a buffer), profiles (`UPRES_PROFILE=1`), NVIDIA's profilers (feature `nvtx`) and messages.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::trace::Tracer;

static PROFILE: LazyLock<bool> = LazyLock::new(|| std::env::var_os("UPRES_PROFILE").is_some_and(|v| v != "0"));
/// `UPRES_GRAPHS=0`: a GPU's steps are launched kernel by kernel, not replayed, so that ranges lie around their kernels;
/// `UPRES_SYNC=1` and `UPRES_CHECK_FINITE=1` need it too.
static GRAPHS: LazyLock<bool> = LazyLock::new(|| {
    let set = |name: &str| std::env::var_os(name);
    set("UPRES_GRAPHS").is_none_or(|v| v != "0") && set("UPRES_SYNC").is_none_or(|v| v == "0") && !*CHECK_FINITE
});
static CHECK_FINITE: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("UPRES_CHECK_FINITE").is_some_and(|v| v != "0"));
static POISON: LazyLock<bool> = LazyLock::new(|| std::env::var_os("UPRES_POISON").is_some_and(|v| v != "0"));

/// True if `UPRES_PROFILE=1`: each op's time is summed.
pub fn profile_enabled() -> bool {
    *PROFILE
}

/// False if `UPRES_GRAPHS=0`.
pub(super) fn graphs_enabled() -> bool {
    *GRAPHS
}

/// True if `UPRES_CHECK_FINITE=1`: every tensor of a training pass is looked at.
pub fn checks_finite() -> bool {
    *CHECK_FINITE
}

/// True if `UPRES_POISON=1`: fresh memory is filled with NaN in release builds too.
pub(super) fn poison_enabled() -> bool {
    *POISON
}

/// Time of one range: of an op, by all names entered around it (`rpn/backward/conv2d`), or of what it is part of.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpTime {
    /// Calls.
    pub calls: u64,
    /// Time inside, inner ranges included.
    pub total: Duration,
}

thread_local! {
    static STACK: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static TIMES: RefCell<HashMap<String, OpTime>> = RefCell::new(HashMap::new());
}

/// The names entered, outermost first, joined by `/`.
pub fn current() -> String {
    STACK.with_borrow(|s| if s.is_empty() { "step".into() } else { s.join("/") })
}

/// Sums since the last reset, largest first.
pub fn op_times() -> Vec<(String, OpTime)> {
    let mut v: Vec<_> = TIMES.with_borrow(|t| t.iter().map(|(k, v)| (k.clone(), *v)).collect());
    v.sort_by_key(|(_, t)| std::cmp::Reverse(t.total));
    v
}

/// Forgets the sums.
pub fn reset_op_times() {
    TIMES.with_borrow_mut(HashMap::clear);
}

/// Leaves the range when dropped.
pub struct Scope {
    tracer: Option<Rc<Tracer>>,
    start: Option<Instant>,
}

impl Scope {
    pub(super) fn enter(name: &str, is_module: bool, tracer: Option<Rc<Tracer>>) -> Scope {
        STACK.with_borrow_mut(|s| s.push(name.to_string()));
        #[cfg(feature = "nvtx")]
        if tracer.is_none() {
            nvtx::range_push!("{name}");
        }
        let start = (*PROFILE && tracer.is_none()).then(Instant::now);
        if let Some(t) = &tracer {
            t.push_scope(name, is_module);
        }
        Scope { tracer, start }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if let Some(t) = &self.tracer {
            t.pop_scope();
        }
        #[cfg(feature = "nvtx")]
        if self.tracer.is_none() {
            nvtx::range_pop!();
        }
        if let Some(start) = self.start {
            TIMES.with_borrow_mut(|times| {
                let e = times.entry(current()).or_default();
                e.calls += 1;
                e.total += start.elapsed();
            });
        }
        STACK.with_borrow_mut(|s| {
            s.pop();
        });
    }
}
