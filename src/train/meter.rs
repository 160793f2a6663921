//! Time of a run, its speed, and what its steps have measured.

use std::time::{Duration, Instant};

use crate::error::Result;

/// Time of the whole run.
pub(super) struct Clock {
    /// Seconds before it was resumed.
    pub before: f64,
    /// When this process began.
    pub start: Instant,
    /// Time spent waiting for data.
    pub waited: Duration,
}

impl Clock {
    /// Seconds of training so far.
    pub fn now(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }
}

/// Losses and speed since the last line of the log.
pub(super) struct Meter {
    start: Instant,
    images: usize,
    steps: usize,
    losses: Vec<f64>,
    waited: Duration,
}

impl Meter {
    pub fn new(waited: Duration) -> Meter {
        Meter { start: Instant::now(), images: 0, steps: 0, losses: Vec::new(), waited }
    }

    /// One step; of one that overflowed, only its images.
    pub fn add(&mut self, images: usize, losses: Option<&[f64]>) {
        self.images += images;
        let Some(losses) = losses else { return };
        self.steps += 1;
        self.losses.resize(losses.len(), 0.0);
        self.losses.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss);
    }

    /// Whether there is anything to tell.
    pub fn has_steps(&self) -> bool {
        self.steps > 0
    }

    /// Mean losses of the steps.
    pub fn losses(&self) -> Vec<f64> {
        self.losses.iter().map(|sum| sum / self.steps.max(1) as f64).collect()
    }

    pub fn since(&self) -> Duration {
        self.start.elapsed()
    }

    /// Images a second and the share of time spent waiting; starts anew.
    pub fn read(&mut self, waited: Duration) -> (f64, f64) {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-9);
        let out = (self.images as f64 / seconds, (waited - self.waited).as_secs_f64() / seconds);
        *self = Meter::new(waited);
        out
    }
}

/// Losses of a pass, on their way from a GPU.
pub(super) type LateLosses = Box<dyn FnOnce() -> Result<Vec<f32>>>;

/// What a step has measured: the losses of each pass, and the norm of the gradient.
pub(super) struct Late {
    /// Its number in the run, from 0.
    pub global_step: u64,
    pub losses: Vec<LateLosses>,
    pub norm: Box<dyn FnOnce() -> Result<f32>>,
}
