//! A recipe: one TOML file that holds every number of a training run, `[model]`, `[data]` and one `[[stage]]` after
//! another.
//!
//! This file only holds the values; `recipe_read` reads and checks files, `recipe_keys` documents every key.

mod check;
pub mod docs;
pub mod keys;
pub mod precision;
pub mod read;
pub mod schedule;
mod schema;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::data::{BadImages, ColourJitter};
use crate::format::{counted, six_digits};
use crate::models::config::ModelConfig;
pub use crate::nn::NormMode;
pub use precision::{Precision, StatePrecision};

/// One training run, resolved: what is not in the file has its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Names the run directory.
    pub name: String,
    /// Seed of every random number.
    pub seed: u64,
    /// Threads of the CPU back end; 0 takes every core.
    pub threads: usize,
    /// What is trained.
    pub model: ModelConfig,
    /// What the first stage starts from.
    pub init: InitConfig,
    /// What it is trained on.
    pub data: DataConfig,
    /// How: one stage after another, each from the weights of the last.
    #[serde(rename = "stage")]
    pub stages: Vec<StageConfig>,
    /// What the run must reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<ExpectConfig>,
}

/// Weights before the first stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// Checkpoint, or weights of another program, to start from; none trains from scratch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
}

/// The data set and how its images are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A data set that upres makes itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub built_in: Option<BuiltInData>,
    /// Subtracted from each channel (RGB, 0 to 255).
    pub mean: [f32; 3],
    /// Each channel is then divided by this.
    pub std: [f32; 3],
    /// What to do with an image that is missing or cannot be decoded.
    pub bad_images: BadImages,
    /// Keep training images without a box.
    pub keep_empty: bool,
    /// Training images with a shorter side are left out.
    pub min_image_size: u32,
    /// Loader threads; 0 takes one for each core.
    pub workers: usize,
    /// Batches prepared ahead.
    pub prefetch: usize,
    /// Memory for decoded images, MiB; 0 decodes anew each time.
    pub cache_mib: u64,
    /// Options of the built-in data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shapes: Option<ShapesConfig>,
    /// Images to train on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<SplitConfig>,
    /// Images to evaluate on while training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val: Option<SplitConfig>,
    /// Images to evaluate on at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<SplitConfig>,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            built_in: None,
            mean: [123.675, 116.28, 103.53],
            std: [58.395, 57.12, 57.375],
            bad_images: BadImages::Fail,
            keep_empty: false,
            min_image_size: 32,
            workers: 0,
            prefetch: 2,
            cache_mib: 0,
            shapes: None,
            train: None,
            val: None,
            test: None,
        }
    }
}

/// Data sets that upres makes itself, in the folder of the annotation files, when those are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuiltInData {
    /// Textured, overlapping shapes.
    Shapes,
}

/// The built-in data set of shapes. Another folder must be named for other options: an existing folder is not made
/// again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapesConfig {
    /// Where it is made.
    pub folder: PathBuf,
    /// Same seed, same bytes.
    pub seed: u64,
    /// Training images.
    pub train: usize,
    /// Validation images.
    pub val: usize,
    /// Longer side of an image in pixels.
    pub size: u32,
}

impl Default for ShapesConfig {
    fn default() -> Self {
        ShapesConfig { folder: PathBuf::from("data/shapes"), seed: 0, train: 400, val: 100, size: 256 }
    }
}

/// One split: a COCO annotation file and the folder that its file names are relative to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitConfig {
    /// COCO JSON file.
    pub annotations: PathBuf,
    /// Image folder.
    pub images: PathBuf,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StageConfig {
    /// Name in the log, in checkpoints and in `--set stage.<name>.key=value`.
    pub name: String,
    /// Passes over the (repeated) training set. This or `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Optimizer steps. This or `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// One epoch is this many passes.
    pub repeat: u32,
    /// Images of one optimizer step.
    pub images_per_step: usize,
    /// Images of one forward and backward pass; gradients of `images_per_step / micro_batch` passes are averaged.
    pub micro_batch: usize,
    /// Images of an evaluation pass; see [`StageConfig::eval_batch`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_batch: Option<usize>,
    /// Chance to mirror an image.
    pub flip: f32,
    /// Chance to mirror an image top to bottom.
    pub vertical_flip: f32,
    /// Batch norm: batch statistics, or running statistics with nothing trained.
    pub batch_norm: NormMode,
    /// Frozen parts of the backbone: -1 none, 0 the stem, n the stem and the first n layers.
    pub frozen_stages: i32,
    /// Storage of activations.
    pub precision: Precision,
    /// What of the backbone is computed again in the backward pass instead of being kept.
    pub recompute: Recompute,
    /// Gradients are scaled down to this norm; 0 is off.
    pub clip_grad_norm: f32,
    /// Decay of the averaged weights; 0 is off.
    pub ema: f64,
    /// Evaluate after so many epochs; 0 only at the end of the stage.
    pub eval_every_epochs: f64,
    /// Write the last checkpoint after so many steps; 0 only after evaluations and at the end.
    pub checkpoint_every_steps: u64,
    /// Older checkpoints kept next to last and best.
    pub keep_checkpoints: usize,
    /// Training images to network input.
    pub resize: Resize,
    /// Evaluation images to network input; see [`StageConfig::eval_resize`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_resize: Option<Resize>,
    /// Random changes of colour.
    pub colour_jitter: ColourJitter,
    /// What moves the weights.
    pub optimizer: OptimizerConfig,
    /// Learning rate over time.
    pub schedule: ScheduleConfig,
}

impl StageConfig {
    /// Images of an evaluation pass: `eval_batch`, or as in training. No result depends on it.
    pub fn eval_batch(&self) -> usize {
        self.eval_batch.unwrap_or(self.micro_batch)
    }

    /// How evaluation images are resized: `eval_resize`, or as in training without its randomness.
    pub fn eval_resize(&self) -> Resize {
        match (&self.eval_resize, &self.resize) {
            (Some(resize), _) => resize.clone(),
            (None, Resize::FitCrop { size, .. }) => Resize::FitCrop { size: *size, jitter: [1.0, 1.0] },
            (None, keep_ratio) => keep_ratio.clone(),
        }
    }

    /// `optimizer.lr` scaled linearly from the batch it is stated for to the batch of this stage (Goyal et al. 2017).
    pub fn effective_lr(&self) -> f64 {
        match self.optimizer.lr_batch {
            0 => self.optimizer.lr,
            batch => self.optimizer.lr * self.images_per_step as f64 / batch as f64,
        }
    }

    /// What to tell the user where [`StageConfig::effective_lr`] differs from `optimizer.lr`.
    pub fn lr_sentence(&self) -> Option<String> {
        let (lr, batch, images) = (self.optimizer.lr, self.optimizer.lr_batch, self.images_per_step);
        (batch != 0 && batch != images).then(|| {
            let scaled = six_digits(self.effective_lr());
            format!(
                "{}: learning rate {lr} is stated for steps of {}; scaled to {scaled} for steps of {images}",
                self.name,
                counted(batch, "image")
            )
        })
    }

    /// Forward and backward passes of one optimizer step.
    pub fn accumulate(&self) -> usize {
        self.images_per_step / self.micro_batch
    }
}

impl Default for StageConfig {
    fn default() -> Self {
        StageConfig {
            name: String::new(),
            epochs: None,
            steps: None,
            repeat: 1,
            images_per_step: 16,
            micro_batch: 2,
            eval_batch: None,
            flip: 0.5,
            vertical_flip: 0.0,
            batch_norm: NormMode::Train,
            frozen_stages: -1,
            precision: Precision::Auto,
            recompute: Recompute::None,
            clip_grad_norm: 0.0,
            ema: 0.0,
            eval_every_epochs: 1.0,
            checkpoint_every_steps: 0,
            keep_checkpoints: 0,
            resize: Resize::default(),
            eval_resize: None,
            colour_jitter: ColourJitter::default(),
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
        }
    }
}

/// From an image of any size to the network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Resize {
    /// Scale the longer side to `size` × jitter, crop `size` × `size` at random, pad to that: one shape for all images.
    FitCrop {
        /// Side of the square input.
        size: u32,
        /// Range of the random scale.
        #[serde(default = "Resize::default_jitter")]
        jitter: [f32; 2],
    },
    /// Scale to fit (`long`, `short`), keeping the ratio; pad to one of a few shapes.
    KeepRatio {
        /// Limit of the longer side.
        long: u32,
        /// Limit of the shorter side.
        short: u32,
        /// Shapes are multiples of this.
        #[serde(default = "Resize::default_pad_to")]
        pad_to: u32,
        /// At most so many padded shapes in all.
        #[serde(default = "Resize::default_buckets")]
        buckets: usize,
    },
}

impl Resize {
    fn default_jitter() -> [f32; 2] {
        [0.8, 1.2]
    }
    fn default_pad_to() -> u32 {
        32
    }
    fn default_buckets() -> usize {
        4
    }
}

impl Default for Resize {
    fn default() -> Self {
        Resize::KeepRatio { long: 1333, short: 800, pad_to: Self::default_pad_to(), buckets: Self::default_buckets() }
    }
}

/// Activations of the backbone that are not kept for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// All are kept.
    None,
    /// Outputs of batch norm, layer norm and GELU that only the next product needs are made again from their inputs.
    Norms,
    /// Of each block, and of ResNet's stem, only the input is kept; the backward pass runs it again.
    Blocks,
}

impl Recompute {
    /// By what they cost, cheapest first.
    pub const ALL: [Recompute; 3] = [Recompute::None, Recompute::Norms, Recompute::Blocks];

    /// As in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Recompute::None => "none",
            Recompute::Norms => "norms",
            Recompute::Blocks => "blocks",
        }
    }
}

/// Optimizer kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// What moves the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Which one.
    pub kind: OptimizerKind,
    /// Learning rate for steps of `lr_batch` images.
    pub lr: f64,
    /// Images a step that `lr` is stated for; 0: never scaled. A file without it states `lr` for its `images_per_step`.
    pub lr_batch: usize,
    /// `sgd`: momentum.
    pub momentum: f32,
    /// `sgd`: Nesterov's momentum.
    pub nesterov: bool,
    /// `adamw`: decay of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// `adamw`: added to the root of the squares.
    pub eps: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Decay the scale and bias of norms.
    pub norm_decay: bool,
    /// Decay the biases of convolutions and linear layers.
    pub bias_decay: bool,
    /// Storage of momentum, or of the running means.
    pub state: StatePrecision,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            kind: OptimizerKind::Sgd,
            lr: 0.02,
            lr_batch: 0,
            momentum: 0.9,
            nesterov: false,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 1e-4,
            norm_decay: true,
            bias_decay: true,
            state: StatePrecision::F32,
        }
    }
}

/// Shapes of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// One value.
    Constant,
    /// Multiplied by `drop_factor` at each of `drop_epochs`.
    Step,
    /// Half a cosine from the whole rate to `final_ratio` of it.
    Cosine,
}

/// Learning rate over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Shape after warm-up.
    pub kind: ScheduleKind,
    /// Linear warm-up over so many steps; 0 is none.
    pub warmup_steps: u64,
    /// Share of the rate at step 0.
    pub warmup_ratio: f64,
    /// `step`: epochs that start with a drop.
    pub drop_epochs: Vec<f64>,
    /// `step`: factor of a drop.
    pub drop_factor: f64,
    /// `cosine`: share of the rate at the end.
    pub final_ratio: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig {
            kind: ScheduleKind::Constant,
            warmup_steps: 500,
            warmup_ratio: 0.001,
            drop_epochs: Vec::new(),
            drop_factor: 0.1,
            final_ratio: 0.0,
        }
    }
}

/// What the finished run must reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectConfig {
    /// Split that the numbers are of.
    #[serde(default = "ExpectConfig::default_split")]
    pub split: ExpectSplit,
    /// COCO AP of boxes, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bbox_ap: Option<f64>,
    /// COCO AP at IoU 0.5, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bbox_ap50: Option<f64>,
    /// COCO AP of masks, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segm_ap: Option<f64>,
    /// COCO AP of masks at IoU 0.5, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segm_ap50: Option<f64>,
    /// Accepted shortfall, in per cent points.
    pub window: f64,
}

impl ExpectConfig {
    /// What must be reached: name and per cent.
    pub fn metrics(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = [
            ("bbox_ap", self.bbox_ap),
            ("bbox_ap50", self.bbox_ap50),
            ("segm_ap", self.segm_ap),
            ("segm_ap50", self.segm_ap50),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    fn default_split() -> ExpectSplit {
        ExpectSplit::Val
    }
}

/// Splits that a run can be judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectSplit {
    /// `data.val`.
    Val,
    /// `data.test`.
    Test,
}
