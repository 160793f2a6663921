//! Loaders: threads make batches ahead of time. A batch depends only on seed, stage and step, not on the number of
//! threads or on where a run was interrupted.
//!
//! Main types: [`Loader`] for training, [`EvalLoader`] for evaluation. Read next: `order` (which images), `pipeline`
//! (what happens to an image), `prefetch` (the threads).

use std::sync::Arc;
use std::time::Duration;

use super::batch::{Batch, Room};
use super::buckets::{Buckets, Shape};
use super::coco::{Dataset, ImageInfo, Segmentation, TrainFilter};
use super::masks::{MaskMap, most_toggles};
use super::order::Order;
use super::pipeline::{Draws, Pipeline, Placement};
use super::prefetch::Prefetch;
use super::resize::Scratch;
use super::store::ImageStore;
use super::toggles::MaskScratch;
use crate::error::{Error, Result};

/// Options of a [`Loader`].
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Seed of the training run.
    pub seed: u64,
    /// Index of the stage.
    pub stage: u8,
    /// Images in a batch.
    pub batch: usize,
    /// Ground-truth boxes each image is padded to: [`Dataset::max_gt`].
    pub max_gt: usize,
    /// Run ends of masks each image is padded to: [`run_capacity`] or more; 0 for no masks.
    pub mask_runs: usize,
    /// Passes over the images per epoch (mmdetection's `RepeatDataset`).
    pub times: usize,
    /// Which images are used.
    pub filter: TrainFilter,
    /// Worker threads; 0 for one per core.
    pub threads: usize,
    /// How many batches are made ahead.
    pub prefetch: usize,
    /// Number of the first batch to deliver.
    pub start_step: u64,
    /// Number of the last batch, plus one; no batch beyond it is made.
    pub end_step: u64,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            stage: 0,
            batch: 2,
            max_gt: 8,
            mask_runs: 0,
            times: 1,
            filter: TrainFilter::default(),
            threads: 0,
            prefetch: 2,
            start_step: 0,
            end_step: u64::MAX,
        }
    }
}

/// Delivers training batches, one after another.
pub struct Loader {
    prefetch: Prefetch<Result<Batch>>,
    job: Arc<TrainJob>,
}

impl Loader {
    /// Starts loading.
    pub fn new(store: Arc<ImageStore>, pipeline: Pipeline, options: LoaderOptions) -> Result<Self> {
        pipeline.check()?;
        check_options(options.batch, options.max_gt)?;
        let images = store.dataset().training_images(options.filter)?;
        check_gt(store.dataset(), &images, options.max_gt)?;
        let buckets = pipeline.buckets(store.dataset(), &images, options.batch);
        if options.mask_runs > 0 {
            check_masks(store.dataset(), &images, &pipeline, options.mask_runs)?;
        }
        let mut members = vec![Vec::new(); buckets.shapes.len()];
        for (position, &k) in buckets.of_image.iter().enumerate() {
            members[usize::from(k)].push(position);
        }
        let order = Order::new(buckets, options.seed, options.stage, options.batch, options.times);
        let job = Arc::new(TrainJob { store, pipeline, options, images, members, order });
        let (threads, depth) = (threads(options.threads), options.prefetch.max(1));
        let worker = Arc::clone(&job);
        let make =
            move |step, old: Option<Result<Batch>>| worker.make(step, old.and_then(Result::ok).unwrap_or_default());
        let prefetch = Prefetch::new(threads, depth, options.start_step, options.end_step, make)
            .map_err(|e| Error::value("loader", format!("no worker thread could be started: {e}")))?;
        Ok(Self { prefetch, job })
    }

    /// The next batch.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Batch> {
        self.prefetch.next().unwrap_or_else(|| {
            Err(Error::value("loader", format!("no batch left: end_step {} is reached", self.job.options.end_step)))
        })
    }

    /// Takes a batch back, so that its memory is reused.
    pub fn recycle(&self, batch: Batch) {
        self.prefetch.recycle(Ok(batch));
    }

    /// Total time that [`Loader::next`] has waited for data.
    pub fn waited(&self) -> Duration {
        self.prefetch.waited()
    }
}

/// Returns the batches per epoch and the shapes of a [`Loader`] with these arguments, without starting one.
pub fn plan_batches(dataset: &Dataset, pipeline: &Pipeline, options: &LoaderOptions) -> Result<(u64, Vec<Shape>)> {
    pipeline.check()?;
    check_options(options.batch, options.max_gt)?;
    let images = dataset.training_images(options.filter)?;
    let order = Order::new(
        pipeline.buckets(dataset, &images, options.batch),
        options.seed,
        options.stage,
        options.batch,
        options.times,
    );
    Ok((order.steps_per_epoch(), order.buckets().shapes.clone()))
}

fn check_options(batch: usize, max_gt: usize) -> Result<()> {
    if batch == 0 || max_gt == 0 {
        return Err(Error::value("loader", format!("batch {batch}, max_gt {max_gt}: both must be at least 1")));
    }
    Ok(())
}

fn check_gt(dataset: &Dataset, images: &[usize], max_gt: usize) -> Result<()> {
    for &i in images {
        let n = dataset.ground_truth(i).count();
        if n > max_gt {
            let info = &dataset.images[i];
            let who = format!("image {} ({})", info.id, info.file_name);
            let message =
                format!("{who} has {n} boxes, but batches have room for {max_gt}: raise max_gt to {n} or more");
            return Err(Error::data(&dataset.path, message));
        }
    }
    Ok(())
}

/// Fails if an object of the ground truth has no mask, or if batches have no room for the masks.
fn check_masks(dataset: &Dataset, images: &[usize], pipeline: &Pipeline, mask_runs: usize) -> Result<()> {
    for &i in images {
        if dataset.ground_truth(i).any(|a| a.segmentation.is_none()) {
            let info = &dataset.images[i];
            let message = format!(
                "image {} ({}) has objects without a mask: read the file with `Masks::Train` to leave them out",
                info.id, info.file_name
            );
            return Err(Error::data(&dataset.path, message));
        }
    }
    let needed = run_capacity(dataset, pipeline);
    if mask_runs < needed || i32::try_from(mask_runs).is_err() {
        let message = format!(
            "mask_runs {mask_runs}: want {needed} or more, below 2³¹, for the masks of {}",
            dataset.path.display()
        );
        return Err(Error::value("loader", message));
    }
    Ok(())
}

/// Upper bound of the toggles (run ends of masks) that the ground truth of one image can have in batches of `pipeline`,
/// for every scale, crop and flip that can be drawn. Rounded up to a multiple of 1024.
///
/// Cost: two numbers per object, which the reader has kept (it rasterises each mask once, on all cores).
pub fn run_capacity(dataset: &Dataset, pipeline: &Pipeline) -> usize {
    let of_image = |(i, image): (usize, &ImageInfo)| {
        let rows = dataset.ground_truth(i).filter_map(|a| a.segmentation.as_ref()).map(Segmentation::row_toggles);
        let (all, falls) = rows.fold((0, 0), |(a, f), r| (a + u64::from(r.all), f + u64::from(r.falls)));
        let to = pipeline.geometry.largest((image.width, image.height)).1;
        most_toggles(all, falls, u64::from(image.height), u64::from(to))
    };
    let most = dataset.images.iter().enumerate().map(of_image).max().unwrap_or(0);
    usize::try_from(most.max(1).next_multiple_of(1024)).unwrap_or(usize::MAX)
}

fn threads(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(2, usize::from),
        n => n,
    }
}

/// Random crops tried for one place of a batch. The last one is moved to where a box is, if it shows none.
const CROPS: usize = 16;
/// Unreadable pictures drawn in a row for one place before [`BadImages::Skip`](super::store::BadImages::Skip) gives up.
const UNREADABLE: usize = 64;

/// Buffers for all places of a batch.
#[derive(Default)]
struct Buffers {
    pixels: Scratch,
    masks: MaskScratch,
    map: MaskMap,
}

struct TrainJob {
    store: Arc<ImageStore>,
    pipeline: Pipeline,
    options: LoaderOptions,
    /// Indices of the images in use. A position is an index into this list.
    images: Vec<usize>,
    /// For each bucket its positions.
    members: Vec<Vec<usize>>,
    order: Order,
}

impl TrainJob {
    fn make(&self, step: u64, mut batch: Batch) -> Result<Batch> {
        let o = &self.options;
        let group = self.order.group(step);
        let shape = self.order.buckets().shapes[group.bucket];
        let room = Room { batch: o.batch, max_gt: o.max_gt, mask_runs: o.mask_runs };
        batch.reset(step, group.bucket, shape, room);
        let mut buffers = Buffers::default();
        for (slot, position) in group.positions.into_iter().enumerate() {
            self.fill(&mut batch, slot, position, &self.members[group.bucket], &mut buffers)?;
        }
        Ok(batch)
    }

    /// Fills a place with the picture at `position`. If its crop shows no box or it cannot be read, draws another
    /// picture of the bucket instead.
    fn fill(
        &self,
        batch: &mut Batch,
        slot: usize,
        mut position: usize,
        members: &[usize],
        buffers: &mut Buffers,
    ) -> Result<()> {
        let (o, dataset) = (&self.options, self.store.dataset());
        let shape = Shape { height: batch.height, width: batch.width };
        let mut draws = Draws::new(o.seed, o.stage, batch.step, slot as u32);
        let (mut crops, mut unreadable) = (0, 0);
        loop {
            let index = self.images[position];
            let info = &dataset.images[index];
            let mut placement = self.pipeline.place((info.width, info.height), shape, &mut draws);
            let wants_box = dataset.ground_truth(index).next().is_some();
            if wants_box && placement.boxes(dataset.ground_truth(index)).next().is_none() {
                crops += 1;
                if crops < CROPS {
                    position = members[draws.replacement(members.len())];
                    continue;
                }
                let n = dataset.ground_truth(index).count();
                if let Some(target) = dataset.ground_truth(index).nth(draws.replacement(n)) {
                    placement.centre_on(target.xyxy);
                }
            }
            let Some(image) = self.store.get(index)? else {
                unreadable += 1;
                if unreadable >= UNREADABLE {
                    let message = format!("{unreadable} pictures drawn in a row cannot be read: run `dataset check`");
                    return Err(Error::data(&dataset.path, message));
                }
                position = members[draws.replacement(members.len())];
                continue;
            };
            self.pipeline.render(&image, &placement, shape, &mut draws, batch.image_mut(slot), &mut buffers.pixels);
            describe(batch, slot, dataset, index, &placement);
            ground_truth(batch, slot, dataset, index, &placement)?;
            if o.mask_runs > 0 {
                masks(batch, slot, dataset, index, &placement, buffers)?;
            }
            return Ok(());
        }
    }
}

/// Fills in everything about a place except pixels, boxes and masks.
fn describe(batch: &mut Batch, slot: usize, dataset: &Dataset, index: usize, placement: &Placement) {
    let info = &dataset.images[index];
    batch.sizes[slot * 4..slot * 4 + 4].copy_from_slice(&placement.sizes);
    batch.image_ids[slot] = info.id;
    batch.indices[slot] = index;
    batch.scale_factors[slot] = [placement.scale.0, placement.scale.1];
    batch.original_sizes[slot] = [info.width, info.height];
    batch.flipped[slot] = placement.window.flip_x;
    batch.valid[slot] = true;
}

/// Fills in the boxes of a place.
fn ground_truth(batch: &mut Batch, slot: usize, dataset: &Dataset, index: usize, placement: &Placement) -> Result<()> {
    let max_gt = batch.max_gt();
    let mut n = 0;
    for (b, label) in placement.boxes(dataset.ground_truth(index)) {
        if n == max_gt {
            return check_gt(dataset, &[index], max_gt);
        }
        let at = slot * max_gt + n;
        batch.gt_boxes[at * 4..at * 4 + 4].copy_from_slice(&b);
        batch.gt_labels[at] = label;
        n += 1;
    }
    batch.gt_count[slot] = n as i32;
    Ok(())
}

/// Fills in the masks of the boxes that [`ground_truth`] wrote.
fn masks(
    batch: &mut Batch,
    slot: usize,
    dataset: &Dataset,
    index: usize,
    placement: &Placement,
    Buffers { masks: scratch, map, .. }: &mut Buffers,
) -> Result<()> {
    let info = &dataset.images[index];
    let (width, max_gt, room) = (batch.width, batch.max_gt(), batch.mask_runs());
    map.set((info.width, info.height), &placement.window);
    let runs = &mut batch.gt_mask_runs[slot * room..(slot + 1) * room];
    let offsets = &mut batch.gt_mask_offsets[slot * (max_gt + 1)..(slot + 1) * (max_gt + 1)];
    let (mut n, mut used) = (0, 0);
    for a in dataset.ground_truth(index).filter(|a| placement.map(a.xyxy).is_some()) {
        if let Some(mask) = &a.segmentation {
            used += scratch.draw(mask, map, width, &mut runs[used..]);
        }
        if used > room {
            let who = format!("image {} ({})", info.id, info.file_name);
            let message = format!(
                "{who}: its masks have {used} run ends or more, but batches have room for {room}: raise mask_runs"
            );
            return Err(Error::data(&dataset.path, message));
        }
        n += 1;
        offsets[n] = used as i32;
    }
    offsets[n..].fill(used as i32);
    Ok(())
}

/// Delivers each image of a data set once, sorted by shape and then by the order of the file. The batches have no
/// ground truth, because an evaluation takes it from the data set.
pub struct EvalLoader {
    prefetch: Prefetch<Result<Batch>>,
}

struct EvalJob {
    store: Arc<ImageStore>,
    pipeline: Pipeline,
    batch: usize,
    buckets: Buckets,
    /// For each batch its bucket and its images.
    groups: Vec<(usize, Vec<usize>)>,
}

impl EvalLoader {
    /// Starts loading. The last batch of each shape may hold places that are not [`valid`](Batch::valid).
    pub fn new(
        store: Arc<ImageStore>,
        pipeline: Pipeline,
        batch: usize,
        threads: usize,
        prefetch: usize,
    ) -> Result<Self> {
        pipeline.check()?;
        check_options(batch, 1)?;
        let all: Vec<usize> = (0..store.dataset().images.len()).collect();
        // Buckets for batches of one image: detections must not depend on the batch size through the padding.
        let buckets = pipeline.buckets(store.dataset(), &all, 1);
        let mut members = vec![Vec::new(); buckets.shapes.len()];
        for (index, &k) in buckets.of_image.iter().enumerate() {
            members[usize::from(k)].push(index);
        }
        let mut groups = Vec::new();
        for (bucket, members) in members.iter().enumerate() {
            groups.extend(members.chunks(batch).map(|c| (bucket, c.to_vec())));
        }
        let batches = groups.len() as u64;
        let job = EvalJob { store, pipeline, batch, buckets, groups };
        let make = move |step, old: Option<Result<Batch>>| job.make(step, old.and_then(Result::ok).unwrap_or_default());
        let prefetch = Prefetch::new(self::threads(threads), prefetch.max(1), 0, batches, make)
            .map_err(|e| Error::value("loader", format!("no worker thread could be started: {e}")))?;
        Ok(Self { prefetch })
    }

    /// The next batch; none after the last one.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Batch>> {
        self.prefetch.next().transpose()
    }

    /// Takes a batch back, so that its memory is reused.
    pub fn recycle(&self, batch: Batch) {
        self.prefetch.recycle(Ok(batch));
    }
}

impl EvalJob {
    fn make(&self, step: u64, mut batch: Batch) -> Result<Batch> {
        let (bucket, images) = &self.groups[step as usize];
        let shape = self.buckets.shapes[*bucket];
        batch.reset(step, *bucket, shape, Room { batch: self.batch, max_gt: 0, mask_runs: 0 });
        let mut scratch = Scratch::default();
        for slot in 0..self.batch {
            let mut draws = Draws::new(0, 0, step, slot as u32);
            let image = images.get(slot).map(|&i| self.store.get(i)).transpose()?.flatten();
            match (image, images.get(slot)) {
                (Some(image), Some(&index)) => {
                    let placement = self.pipeline.place((image.width, image.height), shape, &mut draws);
                    self.pipeline.render(&image, &placement, shape, &mut draws, batch.image_mut(slot), &mut scratch);
                    describe(&mut batch, slot, self.store.dataset(), index, &placement);
                }
                _ => {
                    batch.image_mut(slot).fill(0);
                    let (h, w) = (shape.height as f32, shape.width as f32);
                    batch.sizes[slot * 4..slot * 4 + 4].copy_from_slice(&[h, w, h, w]);
                }
            }
        }
        Ok(batch)
    }
}
