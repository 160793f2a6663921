//! Worker threads that make values ahead of time; the consumer gets them in order.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The value that a worker made, or its panic.
type Made<T> = Result<T, Box<dyn Any + Send>>;

/// Calls `make(n, old)` for n = start, start + 1, … on worker threads, at most `depth` ahead of the consumer, and
/// delivers the results in order. `old` is a value that the consumer gave back, so that its buffers are reused.
pub(super) struct Prefetch<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    workers: Vec<JoinHandle<()>>,
    waited: Duration,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// Signals that there is a value to make, or that the workers must stop.
    work: Condvar,
    /// Signals that a value has been made.
    done: Condvar,
}

struct State<T> {
    next_to_make: u64,
    next_to_deliver: u64,
    end: u64,
    depth: u64,
    ready: BTreeMap<u64, Made<T>>,
    old: Vec<T>,
    stop: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code under the lock can panic half way, so a poisoned state is still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Prefetch<T> {
    pub fn new(
        threads: usize,
        depth: usize,
        start: u64,
        end: u64,
        make: impl Fn(u64, Option<T>) -> T + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_to_make: start,
                next_to_deliver: start,
                end,
                depth: depth.max(1) as u64,
                ready: BTreeMap::new(),
                old: Vec::new(),
                stop: false,
            }),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let make = Arc::new(make);
        let mut prefetch = Self { shared, workers: Vec::with_capacity(threads), waited: Duration::ZERO };
        for i in 0..threads {
            let (shared, make) = (Arc::clone(&prefetch.shared), Arc::clone(&make));
            let worker = std::thread::Builder::new().name(format!("loader-{i}"));
            prefetch.workers.push(worker.spawn(move || work(&shared, &*make))?);
        }
        Ok(prefetch)
    }

    /// The next value; none after the last one. Panics if the worker panicked while it made the value.
    pub fn next(&mut self) -> Option<T> {
        let mut state = self.shared.lock();
        let n = state.next_to_deliver;
        if n >= state.end {
            return None;
        }
        if !state.ready.contains_key(&n) {
            let start = Instant::now();
            while !state.ready.contains_key(&n) {
                state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            self.waited += start.elapsed();
        }
        let made = state.ready.remove(&n);
        state.next_to_deliver += 1;
        drop(state);
        self.shared.work.notify_one();
        match made? {
            Ok(value) => Some(value),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Takes a value back, so that its buffers are reused.
    pub fn recycle(&self, value: T) {
        let mut state = self.shared.lock();
        if state.old.len() as u64 <= state.depth {
            state.old.push(value);
        }
    }

    /// Total time that [`Prefetch::next`] has waited.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

/// The loop of a worker thread.
fn work<T>(shared: &Shared<T>, make: &(impl Fn(u64, Option<T>) -> T + ?Sized)) {
    loop {
        let mut state = shared.lock();
        while !state.stop && state.next_to_make < state.end && state.next_to_make >= state.next_to_deliver + state.depth
        {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop || state.next_to_make >= state.end {
            return;
        }
        let n = state.next_to_make;
        state.next_to_make += 1;
        let old = state.old.pop();
        drop(state);
        let made = catch_unwind(AssertUnwindSafe(|| make(n, old)));
        shared.lock().ready.insert(n, made);
        shared.done.notify_one();
    }
}

impl<T: Send + 'static> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its panics, so the join has no news.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivers_in_order_whatever_the_workers_take() {
        let mut p = Prefetch::new(4, 3, 5, 40, |n, old: Option<Vec<u64>>| {
            std::thread::sleep(Duration::from_micros(n * 7919 % 500));
            let mut v = old.unwrap_or_default();
            v.clear();
            v.push(n);
            v
        })
        .unwrap();
        for n in 5..40 {
            let v = p.next().unwrap();
            assert_eq!(v, [n]);
            p.recycle(v);
        }
        assert!(p.next().is_none() && p.next().is_none());
    }

    #[test]
    fn stops_when_dropped_early_and_passes_panics_on() {
        let p = Prefetch::new(2, 2, 0, u64::MAX, |n, _| n).unwrap();
        drop(p);
        let mut p = Prefetch::new(2, 2, 0, 10, |n, _| if n == 3 { panic!("three") } else { n }).unwrap();
        for n in 0..3 {
            assert_eq!(p.next(), Some(n));
        }
        assert!(catch_unwind(AssertUnwindSafe(|| p.next())).is_err());
        assert_eq!(p.next(), Some(4));
    }
}
