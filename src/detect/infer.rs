//! Loads detectors from checkpoints, and detects objects in whole sets of images.
//!
//! Main type: [`Detector`].

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use rayon::prelude::*;

use super::found::{Detection, ImageDetections};
use super::tta::{View, merge};
use crate::data::{self, EvalLoader, ImageStore, Pipeline};
use crate::device::{Device, StepPlan};
use crate::engine::Engine;
use crate::engine::feed::{host_batch, pixel_stats};
use crate::error::{Error, Result};
use crate::recipe::{BadImages, Recipe, StageConfig};
use crate::run::checkpoint::{Checkpoint, Meta, Weights};

/// A trained detector, as `evaluate` and `detect` use it.
pub struct Detector {
    /// Metadata of the checkpoint.
    pub meta: Meta,
    recipe: Recipe,
    engine: Engine,
    planner: Engine,
}

impl Detector {
    /// Loads a checkpoint onto a device. Running averages of the weights are used where the checkpoint has them.
    ///
    /// Errors: `Io` and `Checkpoint` if the file is missing, truncated or not of the model that its recipe describes.
    pub fn load(checkpoint: &Path, device: &Device) -> Result<Detector> {
        let file = Checkpoint::load(checkpoint)?;
        let recipe = file.recipe()?;
        let engine = |device: &Device| {
            let classes = file.meta.classes.len();
            Engine::new(device, &recipe.model, classes, pixel_stats(&recipe.data), recipe.seed)
        };
        let (engine, planner) = (engine(device)?, engine(&device.planner())?);
        file.load_model(&engine.store, Weights::Averaged)?;
        Ok(Detector { meta: file.meta, recipe, engine, planner })
    }

    /// Class names, in the order of [`Detection::class`].
    pub fn classes(&self) -> &[String] {
        &self.meta.classes
    }

    /// Images in an evaluation pass during training.
    pub fn batch_size(&self) -> usize {
        self.stage().eval_batch()
    }

    /// The recipe's treatment of images that cannot be read.
    pub fn bad_images(&self) -> BadImages {
        self.recipe.data.bad_images
    }

    /// The stage in which the checkpoint was written. Its weights are evaluated at the resolution of this stage.
    fn stage(&self) -> &StageConfig {
        let last = self.recipe.stages.last().expect("a recipe that was checked has a stage");
        self.recipe.stages.get(self.meta.stage).unwrap_or(last)
    }

    /// Detects objects in all images of a store, at the resolution of the checkpoint's stage, `batch_size` images at a
    /// time. `progress` receives the number of images done and the number of all images.
    pub fn detect(
        &mut self,
        store: &Arc<ImageStore>,
        batch_size: usize,
        progress: impl FnMut(usize, usize),
    ) -> Result<Vec<ImageDetections>> {
        self.detect_views(store, batch_size, &[View::PLAIN], progress)
    }

    /// Like [`Detector::detect`], but merges the detections of several views of each image ([`merge`]).
    pub fn detect_views(
        &mut self,
        store: &Arc<ImageStore>,
        batch_size: usize,
        views: &[View],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<ImageDetections>> {
        let images = store.dataset().images.len();
        let mut all = Vec::with_capacity(views.len());
        for (i, view) in views.iter().enumerate() {
            let mut goes_on = |done: usize| progress(i * images + done, views.len() * images);
            let mut found = self.detect_view(store, batch_size, view, &mut goes_on)?;
            for image in &mut found {
                view.restore(&mut image.found, store.dataset().images[image.index].width)?;
            }
            all.push(found);
        }
        Ok(merge(all, self.recipe.model.nms_iou(), self.recipe.model.max_detections()))
    }

    /// Detections in one view, in the view's own pixels: boxes of a mirrored view are still mirrored.
    fn detect_view(
        &mut self,
        store: &Arc<ImageStore>,
        batch_size: usize,
        view: &View,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<ImageDetections>> {
        let pipeline = view.pipeline(self.stage());
        let all: Vec<usize> = (0..store.dataset().images.len()).collect();
        let shapes = pipeline.buckets(store.dataset(), &all, 1).shapes;
        self.planner.enter_eval(shapes.clone(), batch_size)?;
        let plans: Vec<_> = (0..shapes.len()).map(|b| self.planner.eval_pass(None, b)).collect::<Result<_>>()?;
        let order: Vec<usize> = (0..shapes.len()).collect();
        self.engine.enter_eval(shapes, batch_size)?;
        self.engine.device().reserve_arena(plans.iter().map(|p| p.peak_bytes()).max().unwrap_or(0))?;
        let workers = self.recipe.data.workers;
        let goes_on = |done, _| {
            progress(done);
            true
        };
        let found = detect_all(&mut self.engine, &plans, &order, store, pipeline, batch_size, workers, goes_on)?;
        Ok(found.expect("detect_all: nobody ended it"))
    }

    /// Whether detections have masks.
    pub fn has_masks(&self) -> bool {
        self.recipe.model.mask_size().is_some()
    }

    /// The class index in a data set for each class of this detector. The data set must have the same class names, in
    /// any order.
    ///
    /// Errors: `Data` that names the first class that only one of both has.
    pub fn match_classes(&self, dataset: &data::Dataset) -> Result<Vec<usize>> {
        let theirs = dataset.class_names();
        let mine = self.classes();
        let differ = |message: String| {
            let message = format!("{message}: evaluate a checkpoint on a data set with the classes it was trained on");
            Err(Error::data(&dataset.path, message))
        };
        if let Some(name) = mine.iter().find(|n| !theirs.contains(n)) {
            return differ(format!("no category {name:?}, a class of the checkpoint (it has {mine:?})"));
        }
        if let Some(c) = dataset.categories.iter().find(|c| !mine.contains(&c.name)) {
            return differ(format!("category {:?} (id {}) is no class of the checkpoint ({mine:?})", c.name, c.id));
        }
        if theirs == mine {
            return Ok((0..mine.len()).collect());
        }
        Ok(mine.iter().filter_map(|n| theirs.iter().position(|t| t == n)).collect())
    }
}

/// Runs the detector over all images of a store. `order[b]` is the engine's number of the pipeline's bucket `b`. Images
/// that are skipped because they cannot be read have no detections. `progress` receives the number of images done and
/// the number of all images. If it returns `false` the detection stops and the result is `None`.
pub fn detect_all(
    engine: &mut Engine,
    plans: &[Rc<StepPlan>],
    order: &[usize],
    store: &Arc<ImageStore>,
    pipeline: Pipeline,
    batch_size: usize,
    workers: usize,
    mut progress: impl FnMut(usize, usize) -> bool,
) -> Result<Option<Vec<ImageDetections>>> {
    let total = store.dataset().images.len();
    let mut loader = EvalLoader::new(store.clone(), pipeline, batch_size, workers, 2)?;
    let (no_boxes, no_labels) = (vec![0.0; batch_size * 4], vec![-1; batch_size]);
    let mut all = Vec::with_capacity(total);
    while let Some(batch) = loader.next()? {
        let bucket = order[batch.bucket];
        engine.eval_inputs(bucket).load(&host_batch(&batch, &no_boxes, &no_labels))?;
        engine.eval_pass(Some(&plans[bucket]), bucket)?;
        for ((slot, valid), found) in batch.valid.iter().enumerate().zip(engine.detections(bucket)?) {
            if *valid {
                let (size, threshold) = (batch.original_sizes[slot], engine.mask_threshold());
                let found = found.into_par_iter().map(|d| Detection::new(d, size, threshold)).collect();
                all.push(ImageDetections { index: batch.indices[slot], found });
            }
        }
        if !progress(all.len(), total) {
            return Ok(None);
        }
        loader.recycle(batch);
    }
    all.sort_by_key(|d| d.index);
    Ok(Some(all))
}
