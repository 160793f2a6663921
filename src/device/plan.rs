//! The plan device: a step run on it computes nothing and gives every buffer's size and lifetime; the offline planner
//! then gives each an offset in one arena.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::ALIGN_BYTES;
use super::arena::Buf;
use crate::error::{Error, Result};

/// One buffer of a step.
#[derive(Clone, Debug)]
pub struct Alloc {
    /// Size.
    pub bytes: usize,
    /// Place in the arena.
    pub offset: usize,
    /// Who asked: `backward/rpn/conv2d`.
    pub scope: Rc<str>,
    /// Event number of the allocation and of the free.
    pub birth: usize,
    /// As `birth`.
    pub death: usize,
}

/// What one step needs, and where each of its buffers lies.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// In the order of the step.
    pub allocs: Vec<Alloc>,
    /// Size of the arena.
    pub peak_bytes: usize,
    /// Largest sum of bytes alive at one time: no plan can be smaller.
    pub lower_bound_bytes: usize,
}

/// A row of [`StepPlan::live_at_peak`].
#[derive(Clone, Debug)]
pub struct LiveAtPeak {
    /// Scope, without the op.
    pub scope: String,
    /// Bytes alive.
    pub bytes: usize,
    /// Buffers alive.
    pub buffers: usize,
}

impl StepPlan {
    /// What lives at the moment of the largest sum, largest first.
    pub fn live_at_peak(&self) -> Vec<LiveAtPeak> {
        let Some((moment, _)) = live_bytes(&self.allocs).into_iter().max_by_key(|&(t, b)| (b, std::cmp::Reverse(t)))
        else {
            return Vec::new();
        };
        let mut by_scope: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for a in self.allocs.iter().filter(|a| a.birth <= moment && moment < a.death) {
            let e = by_scope.entry(a.scope.to_string()).or_default();
            e.0 += a.bytes;
            e.1 += 1;
        }
        let mut rows: Vec<_> =
            by_scope.into_iter().map(|(scope, (bytes, buffers))| LiveAtPeak { scope, bytes, buffers }).collect();
        rows.sort_by_key(|r| std::cmp::Reverse(r.bytes));
        rows
    }

    /// Gives offsets: largest buffers first, each at the lowest place free during its whole life (the "greedy by size"
    /// of Pisarchyk and Lee 2020, arXiv 2001.03288); of two orders the better one is kept.
    fn place(mut allocs: Vec<Alloc>) -> StepPlan {
        let lower_bound_bytes = live_bytes(&allocs).into_iter().map(|(_, b)| b).max().unwrap_or(0);
        let mut by_size: Vec<usize> = (0..allocs.len()).collect();
        by_size.sort_by_key(|&i| (std::cmp::Reverse(allocs[i].bytes), allocs[i].birth));
        let mut by_life = by_size.clone();
        by_life.sort_by_key(|&i| {
            (std::cmp::Reverse(allocs[i].death - allocs[i].birth), std::cmp::Reverse(allocs[i].bytes))
        });
        let (a, pa) = first_fit(&allocs, &by_size);
        let (b, pb) = first_fit(&allocs, &by_life);
        let (offsets, peak_bytes) = if pa <= pb { (a, pa) } else { (b, pb) };
        for (alloc, offset) in allocs.iter_mut().zip(offsets) {
            alloc.offset = offset;
        }
        StepPlan { allocs, peak_bytes, lower_bound_bytes }
    }

    /// Err if two buffers that live at the same time share a byte.
    pub fn verify(&self) -> Result<()> {
        let mut order: Vec<&Alloc> = self.allocs.iter().filter(|a| a.bytes > 0).collect();
        order.sort_by_key(|a| a.offset);
        for (i, a) in order.iter().enumerate() {
            for b in order[i + 1..].iter().take_while(|b| b.offset < a.offset + a.bytes) {
                if a.birth < b.death && b.birth < a.death {
                    return Err(Error::Plan { message: format!("buffers of {} and {} overlap", a.scope, b.scope) });
                }
            }
        }
        Ok(())
    }
}

/// Sum of (aligned) live bytes after each event that allocates.
fn live_bytes(allocs: &[Alloc]) -> Vec<(usize, usize)> {
    let mut events: Vec<(usize, isize)> = Vec::with_capacity(allocs.len() * 2);
    for a in allocs {
        let bytes = a.bytes.next_multiple_of(ALIGN_BYTES) as isize;
        events.push((a.birth, bytes));
        events.push((a.death, -bytes));
    }
    events.sort_unstable();
    let mut live = 0;
    events
        .into_iter()
        .map(|(t, d)| {
            live += d;
            (t, live as usize)
        })
        .collect()
}

/// Places buffers in the given order, each in the tightest gap that is free during its whole life.
fn first_fit(allocs: &[Alloc], order: &[usize]) -> (Vec<usize>, usize) {
    let mut offsets = vec![0; allocs.len()];
    let mut placed: Vec<usize> = Vec::new(); // sorted by offset
    let mut peak = 0;
    for &i in order {
        let a = &allocs[i];
        let bytes = a.bytes.next_multiple_of(ALIGN_BYTES);
        if bytes == 0 {
            continue;
        }
        let (mut end, mut best, mut best_gap) = (0usize, None, usize::MAX);
        for &j in &placed {
            let b = &allocs[j];
            if a.birth >= b.death || b.birth >= a.death {
                continue;
            }
            if offsets[j] > end {
                let gap = offsets[j] - end;
                if gap >= bytes && gap < best_gap {
                    (best, best_gap) = (Some(end), gap);
                }
            }
            end = end.max(offsets[j] + b.bytes.next_multiple_of(ALIGN_BYTES));
        }
        let offset = best.unwrap_or(end);
        offsets[i] = offset;
        peak = peak.max(offset + bytes);
        let at = placed.partition_point(|&j| offsets[j] <= offset);
        placed.insert(at, i);
    }
    (offsets, peak)
}

/// State of the plan device.
#[derive(Default)]
pub struct Tracer {
    step: RefCell<Option<Vec<Alloc>>>,
    clock: Cell<usize>,
    persistent: Cell<usize>,
    scope: RefCell<Vec<Rc<str>>>,
}

impl Tracer {
    pub(super) fn persistent_bytes(&self) -> usize {
        self.persistent.get()
    }

    pub(super) fn push_scope(&self, name: &str) {
        let mut scope = self.scope.borrow_mut();
        let path = scope.last().map_or_else(|| name.to_string(), |top| format!("{top}/{name}"));
        scope.push(path.into());
    }

    pub(super) fn pop_scope(&self) {
        self.scope.borrow_mut().pop();
    }

    fn tick(&self) -> usize {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    pub(super) fn free(&self, id: Option<usize>, bytes: usize) {
        let Some(id) = id else {
            self.persistent.set(self.persistent.get() - bytes);
            return;
        };
        let now = self.tick();
        if let Some(allocs) = self.step.borrow_mut().as_mut() {
            allocs[id].death = now;
        }
    }
}

pub(super) fn alloc(tracer: &Rc<Tracer>, bytes: usize) -> Buf {
    let birth = tracer.tick();
    let id = match tracer.step.borrow_mut().as_mut() {
        None => {
            tracer.persistent.set(tracer.persistent.get() + bytes);
            None
        }
        Some(allocs) => {
            let scope = tracer.scope.borrow().last().cloned().unwrap_or_else(|| "step".into());
            allocs.push(Alloc { bytes, offset: 0, scope, birth, death: usize::MAX });
            Some(allocs.len() - 1)
        }
    };
    Buf::planned(tracer.clone(), id, bytes)
}

/// Runs a step for its allocations.
pub(super) fn trace<R>(tracer: &Rc<Tracer>, step: impl FnOnce() -> Result<R>) -> Result<(R, Rc<StepPlan>)> {
    if tracer.step.replace(Some(Vec::new())).is_some() {
        return Err(Error::Plan { message: "a step inside a step".into() });
    }
    let out = step();
    let allocs = tracer.step.replace(None).unwrap_or_default();
    let out = out?;
    if let Some(a) = allocs.iter().find(|a| a.death == usize::MAX) {
        return Err(Error::Plan { message: format!("the step left a buffer of {} behind", a.scope) });
    }
    let plan = StepPlan::place(allocs);
    plan.verify()?;
    Ok((out, Rc::new(plan)))
}
