//! The order of training images: each pass over the data is a random permutation, cut into batches of one shape.

use std::sync::{Arc, Mutex, PoisonError};

use super::buckets::Buckets;
use crate::philox::{Purpose, Stream};

/// Tells which images make up each step. One epoch is `times` passes over all images, each in a new order. Images wait
/// in one queue per shape, and a full queue becomes a batch. At the end of the epoch, queues that are not empty are
/// filled up with images from the epoch's start. So every epoch has the same number of steps, and any step can be found
/// without going through the epochs before it.
#[derive(Debug)]
pub(super) struct Order {
    buckets: Buckets,
    seed: u64,
    stage: u8,
    batch: usize,
    times: usize,
    steps_per_epoch: u64,
    /// The two epochs asked for last, because workers can be in two epochs at once.
    recent: Mutex<Vec<(u64, Arc<Vec<Group>>)>>,
}

/// The images of one step, as positions in the list of images in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub bucket: usize,
    pub positions: Vec<usize>,
}

impl Order {
    pub fn new(buckets: Buckets, seed: u64, stage: u8, batch: usize, times: usize) -> Self {
        let (batch, times) = (batch.max(1), times.max(1));
        let mut count = vec![0usize; buckets.shapes.len()];
        for &k in &buckets.of_image {
            count[usize::from(k)] += times;
        }
        let steps_per_epoch = count.iter().map(|n| n.div_ceil(batch) as u64).sum();
        Self { buckets, seed, stage, batch, times, steps_per_epoch, recent: Mutex::new(Vec::new()) }
    }

    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// The images of step `step`.
    pub fn group(&self, step: u64) -> Group {
        let (epoch, at) = (step / self.steps_per_epoch, (step % self.steps_per_epoch) as usize);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, groups)) = recent.iter().find(|(e, _)| *e == epoch) {
            return groups[at].clone();
        }
        let groups = Arc::new(self.epoch(epoch));
        if recent.len() >= 2 {
            recent.remove(0);
        }
        recent.push((epoch, Arc::clone(&groups)));
        groups[at].clone()
    }

    fn epoch(&self, epoch: u64) -> Vec<Group> {
        let n = self.buckets.of_image.len();
        let mut queues = vec![Vec::new(); self.buckets.shapes.len()];
        let mut first = queues.clone();
        let mut groups = Vec::with_capacity(self.steps_per_epoch as usize);
        for pass in 0..self.times {
            let mut order: Vec<usize> = (0..n).collect();
            Stream::new(self.seed, self.stage, epoch, pass as u32, Purpose::Order).rng().shuffle(&mut order);
            for position in order {
                let bucket = usize::from(self.buckets.of_image[position]);
                if first[bucket].len() < self.batch {
                    first[bucket].push(position);
                }
                queues[bucket].push(position);
                if queues[bucket].len() == self.batch {
                    groups.push(Group { bucket, positions: std::mem::take(&mut queues[bucket]) });
                }
            }
        }
        for (bucket, (mut positions, first)) in queues.into_iter().zip(first).enumerate() {
            if !positions.is_empty() {
                let missing = self.batch - positions.len();
                positions.extend(first.iter().cycle().take(missing));
                groups.push(Group { bucket, positions });
            }
        }
        debug_assert_eq!(groups.len() as u64, self.steps_per_epoch);
        groups
    }
}
