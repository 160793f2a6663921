//! Opens the image stores and builds the image pipelines that a recipe's `[data]` and `resize` describe.

use std::path::Path;
use std::sync::Arc;

use crate::data::shapes::{ShapesOptions, ensure};
use crate::data::{
    self, Dataset, Geometry, ImageStore, Masks, Pipeline, ReadOptions, Shape, TrainFilter, run_capacity,
};
use crate::error::{Error, Result};
use crate::models::{HostBatch, PixelStats};
use crate::recipe::{BuiltInData, DataConfig, Recipe, Resize, SplitConfig, StageConfig};

/// The data of a run. Stages share the stores and their caches of decoded images.
pub struct RunData {
    /// Images to train on.
    pub train: Arc<ImageStore>,
    /// Images to evaluate on during training.
    pub val: Option<Arc<ImageStore>>,
    /// Images to evaluate on at the end of the run.
    pub test: Option<Arc<ImageStore>>,
    /// Largest number of ground-truth boxes of a training image.
    pub max_gt: usize,
    /// The rule that selects the images to train on.
    pub filter: TrainFilter,
    /// Whether masks were read.
    pub masks: bool,
}

impl RunData {
    /// Opens all splits; generates the built-in data set if the recipe names it and it does not exist.
    ///
    /// Errors: `Recipe` without a training split, `Data` if validation or test have other categories than training.
    pub fn open(recipe: &Recipe, file: &Path) -> Result<RunData> {
        Self::open_with(recipe, file, false)
    }

    /// Like [`RunData::open`], but also reads masks if `masks` is true. Then objects without a usable mask are not
    /// trained on, and the splits have the masks that [`crate::eval::Evaluator::with_masks`] needs.
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

    /// One line for each split of which some part is not used: what is left out, and why. Empty for clean data.
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

    /// Number of mask run ends that an image of a batch has room for in a stage ([`run_capacity`]); 0 without masks.
    pub fn mask_runs(&self, pipeline: &Pipeline) -> usize {
        if self.masks { run_capacity(self.train.dataset(), pipeline) } else { 0 }
    }
}

/// Opens one split, with a cache of decoded images.
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

/// The pipeline of a stage's training images.
pub fn train_pipeline(stage: &StageConfig) -> Pipeline {
    Pipeline {
        geometry: geometry(&stage.resize),
        flip: stage.flip,
        vertical_flip: stage.vertical_flip,
        colour: stage.colour_jitter,
    }
}

/// The pipeline of a stage's evaluation images.
pub fn eval_pipeline(stage: &StageConfig) -> Pipeline {
    Pipeline::test(geometry(&stage.eval_resize()))
}

/// The pixel normalisation of a recipe.
pub fn pixel_stats(cfg: &DataConfig) -> PixelStats {
    PixelStats { mean: cfg.mean, std: cfg.std }
}

/// Views a loader's batch in the engine's layout. An evaluation batch has no ground truth: its images get one empty
/// slot each, from `no_boxes` and `no_labels`.
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
