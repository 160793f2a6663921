//! The plan of a step: the size and lifetime of each buffer, and the offset in one arena that the offline planner gives it.
//!
//! Lifetimes come from a trace (`trace.rs`); the arena (`arena.rs`) follows the plan to the byte. Main type: [`StepPlan`].

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::cpu::ALIGN_BYTES;
use crate::error::{Error, Result};

/// One buffer of a step.
#[derive(Clone, Debug)]
pub struct Alloc {
    /// Size.
    pub bytes: usize,
    /// Place in the arena.
    pub offset: usize,
    /// Who asked: `rpn/backward/conv2d`.
    pub scope: Rc<str>,
    /// The part of the network that it is for: `rpn`.
    pub module: Rc<str>,
    /// Whether it is freed before whoever asked is done.
    pub workspace: bool,
    /// Event number of the allocation, from 0 in the step: allocations and frees count alike.
    pub birth: usize,
    /// Event number of the free.
    pub death: usize,
}

/// What one step needs, and where each of its buffers lies. Only a trace makes one, and it has passed [`StepPlan::verify`].
#[derive(Debug, Default)]
pub struct StepPlan {
    allocs: Vec<Alloc>,
    peak_bytes: usize,
    lower_bound_bytes: usize,
}

/// A row of [`StepPlan::live_at_peak`].
#[derive(Clone, Debug)]
pub struct LiveAtPeak {
    /// Who asked, down to the op: `rpn/backward/conv2d`.
    pub scope: Rc<str>,
    /// The part of the network that it is for: `rpn`; empty outside all.
    pub module: Rc<str>,
    /// Whether it is freed before the op that asked is done.
    pub workspace: bool,
    /// Bytes alive, each buffer rounded up to [`ALIGN_BYTES`].
    pub bytes: usize,
    /// Buffers alive.
    pub buffers: usize,
}

impl StepPlan {
    /// The buffers, in the order of the step.
    pub fn allocs(&self) -> &[Alloc] {
        &self.allocs
    }

    /// Size of the arena.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// Largest sum of bytes alive at one time: no plan can be smaller.
    pub fn lower_bound_bytes(&self) -> usize {
        self.lower_bound_bytes
    }

    /// The first moment of the largest sum.
    fn peak_moment(&self) -> Option<usize> {
        live_bytes(&self.allocs).into_iter().max_by_key(|&(t, b)| (b, Reverse(t))).map(|(moment, _)| moment)
    }

    /// Who asks for the buffer with which the largest sum is reached.
    pub fn peak_scope(&self) -> Option<&str> {
        let moment = self.peak_moment()?;
        self.allocs.iter().find(|a| a.birth == moment).map(|a| &*a.scope)
    }

    /// What lives at the moment of the largest sum, largest first: together [`StepPlan::lower_bound_bytes`].
    pub fn live_at_peak(&self) -> Vec<LiveAtPeak> {
        let Some(moment) = self.peak_moment() else { return Vec::new() };
        let mut rows: BTreeMap<(&str, bool), LiveAtPeak> = BTreeMap::new();
        for a in self.allocs.iter().filter(|a| a.birth <= moment && moment < a.death) {
            let Alloc { scope, module, workspace, .. } = a.clone();
            let row = LiveAtPeak { scope, module, workspace, bytes: 0, buffers: 0 };
            let row = rows.entry((&a.scope, workspace)).or_insert(row);
            row.bytes += a.bytes.next_multiple_of(ALIGN_BYTES);
            row.buffers += 1;
        }
        let mut rows: Vec<_> = rows.into_values().collect();
        rows.sort_by_key(|r| Reverse(r.bytes));
        rows
    }

    /// Gives offsets with [`first_fit`] in several orders and keeps the smallest arena: largest buffers first ("greedy by
    /// size"), longest lives first, latest frees first, and each of these within the buffers of the moment with the most
    /// bytes alive, then of the next ("greedy by breadth"); Pisarchyk and Lee 2020, arXiv 2001.03288.
    pub(super) fn place(mut allocs: Vec<Alloc>) -> StepPlan {
        let live = live_bytes(&allocs);
        let lower_bound_bytes = live.iter().map(|&(_, bytes)| bytes).max().unwrap_or(0);
        let breadth = breadth(&allocs, live);
        let keys: [Key; 3] =
            [|a| Reverse((a.bytes, 0)), |a| Reverse((a.death - a.birth, a.bytes)), |a| Reverse((a.death, a.bytes))];
        let mut best: (Vec<usize>, usize) = (Vec::new(), usize::MAX);
        for key in keys {
            let mut order: Vec<usize> = (0..allocs.len()).collect();
            order.sort_by_key(|&i| key(&allocs[i]));
            let mut by_breadth = order.clone();
            by_breadth.sort_by_key(|&i| breadth[i]);
            for (order, gap) in [&order, &by_breadth].into_iter().flat_map(|o| [(o, Gap::Tightest), (o, Gap::Lowest)]) {
                let placed = first_fit(&allocs, order, gap);
                if placed.1 < best.1 {
                    best = placed;
                }
                if best.1 == lower_bound_bytes {
                    break;
                }
            }
        }
        let (offsets, peak_bytes) = best;
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

/// What an order of buffers sorts by.
type Key = fn(&Alloc) -> Reverse<(usize, usize)>;

/// For each buffer the rank of the fullest moment of its life: 0 for those alive when most bytes are.
fn breadth(allocs: &[Alloc], mut live: Vec<(usize, usize)>) -> Vec<usize> {
    live.sort_by_key(|&(moment, bytes)| (Reverse(bytes), moment));
    let alive = |a: &Alloc, t: usize| a.birth <= t && t < a.death;
    allocs.iter().map(|a| live.iter().position(|&(t, _)| alive(a, t)).unwrap_or(live.len())).collect()
}

/// Which of the gaps that hold a buffer it goes to.
#[derive(Clone, Copy, PartialEq)]
enum Gap {
    Tightest,
    Lowest,
}

/// Places buffers in the given order. Those placed before that live at the same time leave gaps; each goes to the start of
/// the tightest gap that holds it (the lowest of equals) or the lowest, or above them all if none does.
fn first_fit(allocs: &[Alloc], order: &[usize], which: Gap) -> (Vec<usize>, usize) {
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
                if gap >= bytes && gap < best_gap && (which == Gap::Tightest || best.is_none()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn alloc(bytes: usize, offset: usize, birth: usize, death: usize) -> Alloc {
        let scope = format!("op{birth}").into();
        Alloc { bytes, offset, scope, module: "".into(), workspace: false, birth, death }
    }

    #[test]
    fn verify_refuses_buffers_that_share_bytes_while_both_live() {
        let overlaps = |allocs: [Alloc; 2]| {
            let plan = StepPlan { allocs: allocs.into(), peak_bytes: 256, lower_bound_bytes: 0 };
            plan.verify().is_err()
        };
        assert!(overlaps([alloc(128, 0, 0, 3), alloc(64, 64, 1, 2)]));
        assert!(overlaps([alloc(64, 64, 1, 2), alloc(65, 0, 0, 3)]), "by one byte");
        assert!(!overlaps([alloc(64, 0, 0, 3), alloc(64, 64, 1, 2)]), "side by side");
        assert!(!overlaps([alloc(64, 0, 0, 1), alloc(64, 0, 2, 3)]), "one after the other");
        assert!(!overlaps([alloc(64, 0, 0, 3), alloc(0, 0, 1, 2)]), "nothing overlaps nothing");
        let plan = StepPlan { allocs: vec![alloc(64, 0, 0, 3), alloc(64, 0, 1, 2)], ..StepPlan::default() };
        assert_eq!(plan.verify().unwrap_err().to_string(), "plan: buffers of op0 and op1 overlap");
    }

    #[test]
    fn the_tightest_gap_is_taken() {
        // 64 bytes go to where 192 were; 100 bytes (128 aligned) just fit between them and the one that still lives.
        let allocs =
            [alloc(192, 0, 0, 3), alloc(64, 0, 1, 8), alloc(128, 0, 2, 4), alloc(64, 0, 5, 9), alloc(100, 0, 6, 7)];
        let (offsets, peak) = first_fit(&allocs, &[0, 1, 2, 3, 4], Gap::Tightest);
        assert_eq!((&offsets[..], peak), (&[0, 192, 256, 0, 64][..], 384));
        // Gaps of 192 and, between two that live, of 128 bytes: the higher one is the tighter one.
        let allocs =
            [alloc(192, 0, 0, 4), alloc(64, 0, 1, 9), alloc(128, 0, 2, 5), alloc(64, 0, 3, 8), alloc(100, 0, 6, 7)];
        let (offsets, peak) = first_fit(&allocs, &[0, 1, 2, 3, 4], Gap::Tightest);
        assert_eq!((&offsets[..], peak), (&[0, 192, 256, 384, 256][..], 448));
    }

    #[test]
    fn random_plans_do_not_overlap_and_are_not_below_their_bound() {
        use crate::philox::{Purpose, Stream};
        for seed in 0..20 {
            let mut r = Stream::new(seed, 0, 0, 0, Purpose::Test).rng();
            let (mut allocs, mut live) = (Vec::new(), Vec::new());
            let mut clock = 0;
            while clock < 300 || !live.is_empty() {
                if clock < 300 && (live.is_empty() || r.below(2) == 0) {
                    live.push(allocs.len());
                    allocs.push(alloc(r.below(5000) as usize, 0, clock, usize::MAX));
                } else {
                    let i = live.swap_remove(r.below(live.len() as u32) as usize);
                    allocs[i].death = clock;
                }
                clock += 1;
            }
            let plan = StepPlan::place(allocs);
            plan.verify().unwrap();
            assert!(plan.peak_bytes >= plan.lower_bound_bytes);
            let end = plan.allocs.iter().map(|a| a.offset + a.bytes.next_multiple_of(ALIGN_BYTES)).max();
            assert_eq!(end, Some(plan.peak_bytes));
            let rows = plan.live_at_peak();
            assert_eq!(rows.iter().map(|r| r.bytes).sum::<usize>(), plan.lower_bound_bytes);
        }
    }
}
