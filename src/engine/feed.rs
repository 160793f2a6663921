//! From a recipe's `[data]` and `resize` to image stores and pipelines.

use std::path::Path;
use std::sync::Arc;

use crate::data::shapes::{ShapesOptions, ensure};
use crate::data::{
    self, Dataset, Geometry, ImageStore, Masks, Pipeline, ReadOptions, Shape, TrainFilter, run_capacity,
};
use crate::error::{Error, Result};
use crate::models::{HostBatch, PixelStats};
use crate::recipe::{BuiltInData, DataConfig, Recipe, Resize, SplitConfig, StageConfig};

/// The data of a run. Stages share what is decoded.
pub struct RunData {
    /// Images to train on.
    pub train: Arc<ImageStore>,
    /// Images to evaluate on while training.
    pub val: Option<Arc<ImageStore>>,
    /// Images to evaluate on at the end.
    pub test: Option<Arc<ImageStore>>,
    /// Slots for ground truth.
    pub max_gt: usize,
    /// Which images are trained on.
    pub filter: TrainFilter,
    /// Whether masks were read.
    pub masks: bool,
}

impl RunData {
    /// Opens all splits; makes the built-in data set if it is not there.
    ///
    /// Errors: `Recipe` without a training split, `Data` if validation or test have other categories than training.
    pub fn open(recipe: &Recipe, file: &Path) -> Result<RunData> {
        Self::open_with(recipe, file, false)
    }

    /// As [`RunData::open`], with masks if `masks`: then an object without a usable one is not trained on, and the
    /// evaluation of masks ([`crate::eval::Evaluator::with_masks`]) has what it needs.
    ///
    /// Errors: also `Data` if masks are wanted and the training file has none.
    pub fn open_with(recipe: &Recipe, file: &Path, masks: bool) -> Result<RunData> {
        let cfg = &recipe.data;
        if let Some(BuiltInData::Shapes) = cfg.built_in {
            let s = cfg.shapes.clone().unwrap_or_default();
            let size = (s.size, s.size * 3 / 4);
            let options = ShapesOptions { seed: s.seed, train: s.train, val: s.val, size, ..ShapesOptions::default() };
            ensure(&s.folder, &options)?;
        }
        let split = cfg.train.as_ref().ok_or_else(|| {
            Error::recipe(file, "data.train", "missing: name annotations and images of the training set")
        })?;
        let (of_train, of_others) = if masks { (Masks::Train, Masks::Read) } else { (Masks::Skip, Masks::Skip) };
        let train = open_split(split, cfg, of_train)?;
        let names = train.dataset().class_names();
        let other = |split: &Option<SplitConfig>| -> Result<Option<Arc<ImageStore>>> {
            let Some(split) = split else { return Ok(None) };
            let store = open_split(split, cfg, of_others)?;
            if store.dataset().class_names() != names {
                let message = "its categories differ from those of the training set: use one list in all files";
                return Err(Error::data(&split.annotations, message));
            }
            Ok(Some(store))
        };
        let filter = TrainFilter { empty_gt: !cfg.keep_empty, min_image_size: cfg.min_image_size };
        let (max_gt, val, test) = (train.dataset().max_gt(), other(&cfg.val)?, other(&cfg.test)?);
        Ok(RunData { max_gt, val, test, train, filter, masks })
    }

    /// A line for each split that is not used as its file has it, and none for clean data: what is left out, and why.
    pub fn notes(&self) -> Vec<String> {
        let of_train = self.train.dataset().training_note(self.filter).map(|note| format!("train: {note}"));
        let others = [("val", &self.val), ("test", &self.test)];
        let others = others.into_iter().filter_map(|(split, store)| {
            let dataset = store.as_ref()?.dataset();
            let masks = if self.masks { dataset.mask_note() } else { None };
            let notes: Vec<String> = dataset.evaluation_note().into_iter().chain(masks).collect();
            (!notes.is_empty()).then(|| format!("{split}: {}", notes.join("; ")))
        });
        of_train.into_iter().chain(others).collect()
    }

    /// Run ends of masks that an image of a batch has room for in a stage ([`run_capacity`]); 0 without masks.
    pub fn mask_runs(&self, pipeline: &Pipeline) -> usize {
        if self.masks { run_capacity(self.train.dataset(), pipeline) } else { 0 }
    }
}

/// One split with its cache.
pub fn open_split(split: &SplitConfig, cfg: &DataConfig, masks: Masks) -> Result<Arc<ImageStore>> {
    let options = ReadOptions { masks, ..ReadOptions::default() };
    let dataset = Arc::new(Dataset::load_with(&split.annotations, &split.images, options)?);
    Ok(Arc::new(ImageStore::new(dataset, cfg.bad_images, cfg.cache_mib << 20)))
}

fn geometry(resize: &Resize) -> Geometry {
    match *resize {
        Resize::FitCrop { size, jitter } => {
            Geometry::Fixed { shape: Shape::square(size), jitter: (jitter[0], jitter[1]) }
        }
        Resize::KeepRatio { long, short, pad_to, buckets } => {
            Geometry::Buckets { long, short, jitter: (1.0, 1.0), divisor: pad_to, max_shapes: buckets }
        }
    }
}

/// What happens to training images of a stage.
pub fn train_pipeline(stage: &StageConfig) -> Pipeline {
    Pipeline {
        geometry: geometry(&stage.resize),
        flip: stage.flip,
        vertical_flip: stage.vertical_flip,
        colour: stage.colour_jitter,
    }
}

/// What happens to evaluation images of a stage.
pub fn eval_pipeline(stage: &StageConfig) -> Pipeline {
    Pipeline::test(geometry(&stage.eval_resize()))
}

/// Normalisation of a recipe.
pub fn pixel_stats(cfg: &DataConfig) -> PixelStats {
    PixelStats { mean: cfg.mean, std: cfg.std }
}

/// A loader's batch as the engine wants it. An evaluation batch has no ground truth: one empty slot an image.
pub fn host_batch<'a>(batch: &'a data::Batch, no_boxes: &'a [f32], no_labels: &'a [i32]) -> HostBatch<'a> {
    let (sizes, _) = batch.sizes.as_chunks();
    let empty = batch.max_gt() == 0;
    HostBatch {
        images: &batch.images,
        sizes,
        scale: &batch.scale_factors,
        gt_boxes: if empty { no_boxes } else { &batch.gt_boxes },
        gt_labels: if empty { no_labels } else { &batch.gt_labels },
        gt_count: &batch.gt_count,
        mask_runs: &batch.gt_mask_runs,
        mask_offsets: &batch.gt_mask_offsets,
    }
}
