//! Recipes: one TOML file holds every number of a training run, in `[model]`, `[data]` and a list of `[[stage]]`.
//!
//! This file only defines the values; it neither reads nor applies them. Main type: [`Recipe`]. Read next: [`read`]
//! (reads and checks files), [`keys`] (documents every key), [`schedule`] (the learning rate over time).

mod check;
pub mod docs;
mod expect;
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
pub use expect::{ExpectConfig, ExpectSplit};
pub use precision::{Precision, StatePrecision};

/// A resolved recipe of one training run: keys that the file lacks have their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run directory.
    pub name: String,
    /// Seed of every random number.
    pub seed: u64,
    /// Number of threads of the CPU back end; 0 takes every core.
    pub threads: usize,
    /// The detector.
    pub model: ModelConfig,
    /// The initial weights.
    pub init: InitConfig,
    /// The data set.
    pub data: DataConfig,
    /// The stages, in order. Each stage starts from the weights of the previous one.
    #[serde(rename = "stage")]
    pub stages: Vec<StageConfig>,
    /// The results that the run must reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<ExpectConfig>,
}

/// Weights before the first stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// Checkpoint, or weights of another program, to start from; `None` trains from scratch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
}

/// The data set and how its images are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A data set that upres generates itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub built_in: Option<BuiltInData>,
    /// Mean that is subtracted from each channel (RGB, 0 to 255).
    pub mean: [f32; 3],
    /// Standard deviation that each channel is then divided by.
    pub std: [f32; 3],
    /// Action for an image that is missing or cannot be decoded.
    pub bad_images: BadImages,
    /// Whether to keep training images without a box.
    pub keep_empty: bool,
    /// Training images with a side shorter than this many pixels are left out.
    pub min_image_size: u32,
    /// Number of loader threads; 0 takes one for each core.
    pub workers: usize,
    /// Number of batches prepared ahead.
    pub prefetch: usize,
    /// Size of the cache of decoded images in MiB; 0 decodes an image at each use.
    pub cache_mib: u64,
    /// Options of the built-in data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shapes: Option<ShapesConfig>,
    /// Images to train on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<SplitConfig>,
    /// Images to evaluate on during training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val: Option<SplitConfig>,
    /// Images to evaluate on at the end of the run.
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

/// Data sets that upres generates itself if their folder does not hold them yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuiltInData {
    /// Textured, overlapping shapes.
    Shapes,
}

/// Options of the built-in data set of shapes. Other options need another folder: an existing data set is not
/// overwritten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapesConfig {
    /// Folder of the data set.
    pub folder: PathBuf,
    /// Seed of the pictures; the same seed gives the same bytes.
    pub seed: u64,
    /// Number of training images.
    pub train: usize,
    /// Number of validation images.
    pub val: usize,
    /// Longer side of the largest images in pixels.
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

/// One stage of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StageConfig {
    /// Name in the log, in checkpoints and in `--set stage.<name>.key=value`.
    pub name: String,
    /// Length in passes over the (repeated) training set; either this or `steps` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Length in optimizer steps; either this or `epochs` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Number of passes over the training set in one epoch.
    pub repeat: u32,
    /// Number of images in one optimizer step.
    pub images_per_step: usize,
    /// Number of images in one forward and backward pass; gradients of `images_per_step / micro_batch` passes are
    /// averaged.
    pub micro_batch: usize,
    /// Number of images in an evaluation pass; see [`StageConfig::eval_batch`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_batch: Option<usize>,
    /// Probability of mirroring an image left to right.
    pub flip: f32,
    /// Probability of mirroring an image top to bottom.
    pub vertical_flip: f32,
    /// Mode of batch norm: its statistics, and whether its scale and bias are trained.
    pub batch_norm: NormMode,
    /// Frozen part of the backbone: -1 nothing, 0 the stem, n the stem and the first n layers.
    pub frozen_stages: i32,
    /// Type in which activations are stored.
    pub precision: Precision,
    /// Activations that are rematerialised in the backward pass instead of being kept.
    pub recompute: Recompute,
    /// Gradients with a larger norm are scaled down to this norm; 0 turns clipping off.
    pub clip_grad_norm: f32,
    /// Decay of the running average of the weights; 0 keeps no average.
    pub ema: f64,
    /// Number of epochs from one evaluation to the next; 0 evaluates only at the end of the stage.
    pub eval_every_epochs: f64,
    /// Number of steps from one checkpoint to the next; 0 writes only after evaluations and at the end.
    pub checkpoint_every_steps: u64,
    /// Number of older checkpoints kept besides the last and the best.
    pub keep_checkpoints: usize,
    /// Resizing of training images to the network's input.
    pub resize: Resize,
    /// Resizing of evaluation images to the network's input; see [`StageConfig::eval_resize`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_resize: Option<Resize>,
    /// Random changes of colour.
    pub colour_jitter: ColourJitter,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// Learning rate over time.
    pub schedule: ScheduleConfig,
}

impl StageConfig {
    /// Number of images in an evaluation pass: `eval_batch`, or else `micro_batch`. Results do not depend on it.
    pub fn eval_batch(&self) -> usize {
        self.eval_batch.unwrap_or(self.micro_batch)
    }

    /// Resizing of evaluation images: `eval_resize`, or else that of training without its randomness.
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

    /// The note for the user if [`StageConfig::effective_lr`] differs from `optimizer.lr`.
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

    /// Number of forward and backward passes in one optimizer step.
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

/// Resizing of an image of any size to the network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Resize {
    /// Scales the longer side to `size` × jitter, crops at random to at most `size` × `size` and pads to `size` ×
    /// `size`, so that all images have one shape.
    FitCrop {
        /// Side of the square input.
        size: u32,
        /// Range of the random jitter of the scale.
        #[serde(default = "Resize::default_jitter")]
        jitter: [f32; 2],
    },
    /// Scales to fit (`long`, `short`), keeping the aspect ratio, and pads to one of a few shapes.
    KeepRatio {
        /// Largest length of the longer side.
        long: u32,
        /// Largest length of the shorter side.
        short: u32,
        /// Sides of padded shapes are multiples of this.
        #[serde(default = "Resize::default_pad_to")]
        pad_to: u32,
        /// Largest number of padded shapes.
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

/// Activations that are rematerialised in the backward pass instead of being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// All activations are kept.
    None,
    /// Outputs of batch norm, layer norm and GELU that only the next convolution or linear layer needs are
    /// rematerialised from the inputs of those ops.
    Norms,
    /// Only the input of each block of the backbone, and of ResNet's stem, is kept; the backward pass repeats the
    /// forward pass of the block.
    Blocks,
}

impl Recompute {
    /// All choices, in the order of their cost, cheapest first.
    pub const ALL: [Recompute; 3] = [Recompute::None, Recompute::Norms, Recompute::Blocks];

    /// The value of `recompute` in a recipe.
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

/// Settings of the optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The algorithm.
    pub kind: OptimizerKind,
    /// Learning rate for steps of `lr_batch` images.
    pub lr: f64,
    /// Number of images per step that `lr` is stated for; 0: `lr` is never scaled. In a file without this key, `lr` is
    /// stated for the file's `images_per_step`.
    pub lr_batch: usize,
    /// `sgd`: momentum.
    pub momentum: f32,
    /// `sgd`: whether to use Nesterov's momentum.
    pub nesterov: bool,
    /// `adamw`: decay of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// `adamw`: epsilon added to the root of the running mean of squares.
    pub eps: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Whether weight decay applies to the scale and bias of norms.
    pub norm_decay: bool,
    /// Whether weight decay applies to the biases of convolutions and linear layers.
    pub bias_decay: bool,
    /// Type in which momentum, or the running means, are stored.
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

/// Courses of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Constant.
    Constant,
    /// Multiplied by `drop_factor` at the start of each of `drop_epochs`.
    Step,
    /// Half a cosine from the full rate to `final_ratio` of it.
    Cosine,
}

/// Learning rate over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Course after warm-up.
    pub kind: ScheduleKind,
    /// Number of steps of the linear warm-up; 0: no warm-up.
    pub warmup_steps: u64,
    /// Factor of the rate at step 0.
    pub warmup_ratio: f64,
    /// `step`: epochs at whose start the rate drops.
    pub drop_epochs: Vec<f64>,
    /// `step`: factor of each drop.
    pub drop_factor: f64,
    /// `cosine`: factor of the rate at the end.
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
