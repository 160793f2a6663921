//! Batches in a fixed order: worker threads decode and augment ahead of training. Order and augmentation are functions of
//! (seed, stage, step): not of threads, nor of where a run was interrupted.
//!
//! Main types: [`Loader`], [`Batch`], [`Source`].

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::tensor::philox::{Purpose, Stream};

/// Place of an image in the training: keys its random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleKey {
    /// Of the run.
    pub seed: u64,
    /// Index of the stage.
    pub stage: u8,
    /// Optimizer step within the stage.
    pub step: u64,
    /// Index of the image within the step.
    pub image: u32,
}

impl SampleKey {
    /// The random numbers for a purpose.
    pub fn stream(&self, purpose: Purpose) -> Stream {
        Stream::new(self.seed, self.stage, self.step, self.image, purpose)
    }
}

/// What is known of an image once its pixels are in place.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Index in the source.
    pub index: usize,
    /// Id in the annotation file.
    pub image_id: u64,
    /// img_h, img_w, pad_h, pad_w in network pixels.
    pub size: [f32; 4],
    /// Network pixels per original pixel, w and h.
    pub scale: [f32; 2],
    /// Original width and height.
    pub original: [u32; 2],
    /// Mirrored left to right.
    pub flipped: bool,
    /// Ground truth in network pixels.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box.
    pub labels: Vec<i32>,
}

/// Images that can be prepared for the network.
pub trait Source: Send + Sync {
    /// Usable images.
    fn len(&self) -> usize;
    /// True if there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Height and width of each shape bucket.
    fn bucket_shapes(&self) -> &[(usize, usize)];
    /// Bucket of an image.
    fn bucket(&self, index: usize) -> usize;
    /// Most ground-truth boxes that an image can have, rounded up.
    fn max_gt(&self) -> usize;
    /// Fills `pixels` (`[H,W,3]` of the image's bucket, all of it).
    fn prepare(&self, index: usize, key: &SampleKey, pixels: &mut [u8]) -> Result<Prepared>;
}

/// One micro-batch on the host, padded to the bucket.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Optimizer step within the stage.
    pub step: u64,
    /// Micro-batch within the step.
    pub pass: usize,
    /// Bucket of all its images.
    pub bucket: usize,
    /// `[B,H,W,3]` RGB.
    pub images: Vec<u8>,
    /// `[B,4]`.
    pub sizes: Vec<[f32; 4]>,
    /// `[B,2]`.
    pub scale: Vec<[f32; 2]>,
    /// `[B,G,4]`.
    pub gt_boxes: Vec<f32>,
    /// `[B,G]`, -1 behind the last.
    pub gt_labels: Vec<i32>,
    /// `[B]`.
    pub gt_count: Vec<i32>,
    /// Of each image; fewer than B in the last batch of an evaluation.
    pub prepared: Vec<Prepared>,
}

/// What a loader delivers.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Of the run.
    pub seed: u64,
    /// Index of the stage.
    pub stage: u8,
    /// Images of a batch.
    pub micro_batch: usize,
    /// Batches of an optimizer step.
    pub passes: usize,
    /// Passes over the images in one epoch.
    pub repeat: usize,
    /// First step to deliver.
    pub start_step: u64,
    /// Step after the last.
    pub end_step: u64,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Batches prepared ahead, at least 1.
    pub prefetch: usize,
    /// Shuffle (training) or keep the order (evaluation).
    pub shuffle: bool,
}

/// Optimizer steps of an epoch: each bucket is filled up to whole batches by repeating images, and the batches to whole
/// steps.
pub fn steps_per_epoch(source: &dyn Source, micro_batch: usize, passes: usize, repeat: usize) -> u64 {
    let mut counts = vec![0usize; source.bucket_shapes().len()];
    (0..source.len()).for_each(|i| counts[source.bucket(i)] += repeat);
    let batches: usize = counts.iter().map(|c| c.div_ceil(micro_batch)).sum();
    batches.div_ceil(passes.max(1)) as u64
}

/// The batches (bucket and image indices) of an epoch, in order.
fn epoch_batches(source: &dyn Source, o: &LoaderOptions, epoch: u64) -> Vec<(usize, Vec<usize>)> {
    let mut order: Vec<usize> = Vec::with_capacity(source.len() * o.repeat);
    let mut rng = Stream::new(o.seed, o.stage, epoch, 0, Purpose::Order).rng();
    for _ in 0..o.repeat {
        let mut pass: Vec<usize> = (0..source.len()).collect();
        if o.shuffle {
            rng.shuffle(&mut pass);
        }
        order.extend(pass);
    }
    let mut by_bucket: Vec<Vec<usize>> = vec![Vec::new(); source.bucket_shapes().len()];
    for i in order {
        by_bucket[source.bucket(i)].push(i);
    }
    let mut batches = Vec::new();
    for (bucket, list) in by_bucket.iter().enumerate() {
        for chunk in list.chunks(o.micro_batch) {
            let mut images = chunk.to_vec();
            if o.shuffle {
                images.extend(list.iter().cycle().take(o.micro_batch - chunk.len())); // whole batches only
            }
            batches.push((bucket, images));
        }
    }
    if o.shuffle {
        rng.shuffle(&mut batches);
        let want = steps_per_epoch(source, o.micro_batch, o.passes, o.repeat) as usize * o.passes.max(1);
        for i in 0..want - batches.len() {
            batches.push(batches[i].clone());
        }
    }
    batches
}

struct Job {
    number: u64,
    step: u64,
    pass: usize,
    bucket: usize,
    images: Vec<usize>,
}

struct Queue {
    jobs: Mutex<Jobs>,
    ready: Condvar,
}

#[derive(Default)]
struct Jobs {
    next: u64,
    delivered: u64,
    spare: Vec<Batch>,
    epoch: Option<(u64, Vec<(usize, Vec<usize>)>)>,
    stop: bool,
}

/// Delivers batches in order.
pub struct Loader {
    results: Receiver<(u64, Result<Batch>)>,
    pending: BTreeMap<u64, Result<Batch>>,
    queue: Arc<Queue>,
    workers: Vec<JoinHandle<()>>,
    next: u64,
    end: u64,
    waited: Duration,
}

impl Loader {
    /// Starts the workers. Steps count from the start of the stage.
    ///
    /// Errors: `Value` if the source has no images.
    pub fn new(source: Arc<dyn Source>, options: LoaderOptions) -> Result<Loader> {
        if source.is_empty() {
            return Err(Error::value("loader", "the data set has no usable image"));
        }
        let passes = options.passes.max(1) as u64;
        let (first, mut end) = (options.start_step * passes, options.end_step * passes);
        if !options.shuffle {
            end = end.min(epoch_batches(source.as_ref(), &options, 0).len() as u64);
        }
        let ahead = (options.prefetch.max(1) + options.workers) as u64;
        let (send, results) = sync_channel(ahead as usize + 1);
        let jobs = Jobs { next: first, delivered: first, ..Jobs::default() };
        let queue = Arc::new(Queue { jobs: Mutex::new(jobs), ready: Condvar::new() });
        let workers = (0..options.workers.max(1))
            .map(|i| {
                let (queue, source, send) = (queue.clone(), source.clone(), send.clone());
                std::thread::Builder::new()
                    .name(format!("loader {i}"))
                    .spawn(move || work(&queue, source.as_ref(), &options, end, ahead, &send))
                    .map_err(|e| Error::value("loader", format!("cannot start a thread: {e}")))
            })
            .collect::<Result<_>>()?;
        Ok(Loader { results, pending: BTreeMap::new(), queue, workers, next: first, end, waited: Duration::ZERO })
    }

    /// The next batch; none after the last.
    #[allow(clippy::should_implement_trait, reason = "fallible, and the batch comes back through `recycle`")]
    pub fn next(&mut self) -> Result<Option<Batch>> {
        if self.next == self.end {
            return Ok(None);
        }
        let start = Instant::now();
        while !self.pending.contains_key(&self.next) {
            let (number, batch) =
                self.results.recv().map_err(|_| Error::value("loader", "a worker thread ended unexpectedly"))?;
            self.pending.insert(number, batch);
        }
        self.waited += start.elapsed();
        let batch = self.pending.remove(&self.next).unwrap_or_else(|| unreachable!("checked above"))?;
        self.next += 1;
        self.lock().delivered = self.next;
        self.queue.ready.notify_all();
        Ok(Some(batch))
    }

    /// Gives a batch's memory back.
    pub fn recycle(&self, batch: Batch) {
        let mut jobs = self.lock();
        if jobs.spare.len() < 8 {
            jobs.spare.push(batch);
        }
    }

    /// Time that [`Loader::next`] has waited so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Jobs> {
        self.queue.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.lock().stop = true;
        self.queue.ready.notify_all();
        while self.results.try_recv().is_ok() {}
        for worker in self.workers.drain(..) {
            while !worker.is_finished() {
                let _ = self.results.recv_timeout(Duration::from_millis(1)); // lets a sender go on
            }
            let _ = worker.join();
        }
    }
}

fn work(
    queue: &Queue,
    source: &dyn Source,
    o: &LoaderOptions,
    end: u64,
    ahead: u64,
    send: &SyncSender<(u64, Result<Batch>)>,
) {
    loop {
        let (job, batch) = {
            let mut jobs = queue.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            loop {
                if jobs.stop || jobs.next >= end {
                    return;
                }
                if jobs.next < jobs.delivered + ahead {
                    break;
                }
                jobs = queue.ready.wait(jobs).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            (take_job(&mut jobs, source, o), jobs.spare.pop().unwrap_or_default())
        };
        let number = job.number;
        // A panic in a decoder must reach the trainer as an error, not leave it waiting.
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make(source, o, &job, batch)))
            .unwrap_or_else(|_| Err(Error::value("loader", format!("preparing images {:?} panicked", job.images))));
        if send.send((number, made)).is_err() {
            return;
        }
    }
}

fn take_job(jobs: &mut Jobs, source: &dyn Source, o: &LoaderOptions) -> Job {
    let passes = o.passes.max(1) as u64;
    let number = jobs.next;
    jobs.next += 1;
    let step = number / passes;
    let (epoch, at) = if o.shuffle {
        let per_epoch = steps_per_epoch(source, o.micro_batch, o.passes, o.repeat) * passes;
        (number / per_epoch, number % per_epoch)
    } else {
        (0, number)
    };
    if jobs.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
        jobs.epoch = Some((epoch, epoch_batches(source, o, epoch)));
    }
    let (bucket, images) =
        jobs.epoch.as_ref().map(|(_, b)| b[at as usize].clone()).unwrap_or_else(|| unreachable!("made above"));
    Job { number, step, pass: (number % passes) as usize, bucket, images }
}

fn make(source: &dyn Source, o: &LoaderOptions, job: &Job, mut batch: Batch) -> Result<Batch> {
    let (h, w) = source.bucket_shapes()[job.bucket];
    let (b, g, pixels) = (o.micro_batch, source.max_gt(), h * w * 3);
    (batch.step, batch.pass, batch.bucket) = (job.step, job.pass, job.bucket);
    batch.images.resize(b * pixels, 0);
    batch.sizes.clear();
    batch.scale.clear();
    batch.gt_boxes.clear();
    batch.gt_boxes.resize(b * g * 4, 0.0);
    batch.gt_labels.clear();
    batch.gt_labels.resize(b * g, -1);
    batch.gt_count.clear();
    batch.prepared.clear();
    for (i, &index) in job.images.iter().enumerate() {
        let image = (job.pass * b + i) as u32;
        let key = SampleKey { seed: o.seed, stage: o.stage, step: job.step, image };
        let p = source.prepare(index, &key, &mut batch.images[i * pixels..][..pixels])?;
        if p.boxes.len() > g {
            let message = format!("image {} has {} boxes, the step has room for {g}", p.image_id, p.boxes.len());
            return Err(Error::value("loader", message));
        }
        for (j, (bbox, &label)) in p.boxes.iter().zip(&p.labels).enumerate() {
            batch.gt_boxes[(i * g + j) * 4..][..4].copy_from_slice(bbox);
            batch.gt_labels[i * g + j] = label;
        }
        batch.sizes.push(p.size);
        batch.scale.push(p.scale);
        batch.gt_count.push(p.boxes.len() as i32);
        batch.prepared.push(p);
    }
    for i in job.images.len()..b {
        batch.images[i * pixels..][..pixels].fill(0); // the last batch of an evaluation: empty images
        batch.sizes.push([1.0, 1.0, 32.0, 32.0]);
        batch.scale.push([1.0, 1.0]);
        batch.gt_count.push(0);
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten images in two buckets; pixels tell the index and a random number.
    struct Fake;

    impl Source for Fake {
        fn len(&self) -> usize {
            10
        }
        fn bucket_shapes(&self) -> &[(usize, usize)] {
            &[(1, 2), (2, 1)]
        }
        fn bucket(&self, index: usize) -> usize {
            usize::from(index >= 7)
        }
        fn max_gt(&self) -> usize {
            2
        }
        fn prepare(&self, index: usize, key: &SampleKey, pixels: &mut [u8]) -> Result<Prepared> {
            if index == 99 {
                return Err(Error::value("x", "y"));
            }
            pixels.fill(key.stream(Purpose::Crop).u32_at(0) as u8);
            pixels[0] = index as u8;
            Ok(Prepared {
                index,
                image_id: index as u64,
                size: [1.0; 4],
                scale: [1.0; 2],
                original: [2, 1],
                flipped: false,
                boxes: vec![[0.0, 0.0, 1.0, 1.0]; index % 3],
                labels: vec![1; index % 3],
            })
        }
    }

    fn options() -> LoaderOptions {
        LoaderOptions {
            seed: 5,
            stage: 1,
            micro_batch: 2,
            passes: 2,
            repeat: 1,
            start_step: 0,
            end_step: 9,
            workers: 1,
            prefetch: 2,
            shuffle: true,
        }
    }

    type Seen = (u64, usize, usize, Vec<u8>, Vec<i32>);

    fn all(o: LoaderOptions) -> Vec<Seen> {
        let mut loader = Loader::new(Arc::new(Fake), o).unwrap();
        let mut v = Vec::new();
        while let Some(b) = loader.next().unwrap() {
            v.push((b.step, b.pass, b.bucket, b.images.clone(), b.gt_labels.clone()));
            loader.recycle(b);
        }
        v
    }

    #[test]
    fn order_does_not_depend_on_threads_or_start() {
        let whole = all(options());
        assert_eq!(whole.len(), 18);
        assert_eq!(whole, all(LoaderOptions { workers: 4, prefetch: 1, ..options() }));
        assert_eq!(whole[8..], all(LoaderOptions { start_step: 4, workers: 2, ..options() }));
        assert_ne!(whole, all(LoaderOptions { seed: 6, ..options() }));
    }

    #[test]
    fn an_epoch_sees_every_image_and_batches_do_not_mix_buckets() {
        // 7 + 3 images in batches of two: 4 + 2 batches, 3 steps.
        assert_eq!(steps_per_epoch(&Fake, 2, 2, 1), 3);
        let epoch = all(LoaderOptions { end_step: 3, ..options() });
        let mut seen: Vec<u8> = epoch.iter().flat_map(|b| [b.3[0], b.3[6]]).collect();
        for b in &epoch {
            assert!([b.3[0], b.3[6]].iter().all(|&i| usize::from(i >= 7) == b.2));
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (0..10).collect::<Vec<u8>>());
    }

    #[test]
    fn evaluation_keeps_the_order_and_pads_the_last_batch() {
        let o = LoaderOptions { shuffle: false, passes: 1, micro_batch: 4, end_step: u64::MAX, ..options() };
        let mut loader = Loader::new(Arc::new(Fake), o).unwrap();
        let mut seen = Vec::new();
        while let Some(b) = loader.next().unwrap() {
            assert_eq!((b.sizes.len(), b.gt_count.len()), (4, 4));
            seen.extend(b.prepared.iter().map(|p| p.index));
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn dropping_a_loader_in_the_middle_ends_its_threads() {
        let mut loader = Loader::new(Arc::new(Fake), LoaderOptions { workers: 3, ..options() }).unwrap();
        loader.next().unwrap();
        drop(loader);
    }
}
