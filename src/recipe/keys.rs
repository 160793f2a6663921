//! The table of all keys of a recipe, each with its type and range, its meaning and the source of its default. The same
//! table serves the checks (unknown keys, wrong types and ranges), the nearest-key hints and docs/recipes.md.

/// The type and range of a key's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    /// Any text.
    Text,
    /// A file or folder.
    Path,
    /// `true` or `false`.
    Flag,
    /// A whole number in a range.
    Whole(i64, i64),
    /// A number in a range.
    Real(f64, f64),
    /// A list of numbers in a range, with the given length (`None`: at least one number; an empty list is refused).
    Reals(Option<usize>, f64, f64),
    /// A list of at least one whole number in a range.
    Wholes(i64, i64),
    /// A list of numbers in a range; it may be empty.
    List(f64, f64),
    /// One of a few words.
    OneOf(&'static [&'static str]),
    /// A table with the same keys as another table, whose path is given.
    Like(&'static str),
}

/// Whether a key may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The key has a default.
    Default,
    /// The key has no default; leaving it out has a meaning of its own.
    Optional,
    /// The key and its table must be given.
    Required,
    /// The key must be given if its table is.
    RequiredInTable,
}

/// One key of a recipe.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted path; `*` stands for any stage.
    pub path: &'static str,
    /// The type and range of its value.
    pub want: Want,
    /// Whether it may be left out.
    pub need: Need,
    /// The key belongs to those `kind`s of its table that start with this; `None`: to all.
    pub only: Option<&'static str>,
    /// The meaning of the key in one sentence.
    pub meaning: &'static str,
    /// The source of the default.
    pub source: &'static str,
}

impl Key {
    const fn optional(mut self) -> Self {
        self.need = Need::Optional;
        self
    }
    const fn required(mut self) -> Self {
        self.need = Need::Required;
        self
    }
    const fn in_table(mut self) -> Self {
        self.need = Need::RequiredInTable;
        self
    }
    const fn only(mut self, kind: &'static str) -> Self {
        self.only = Some(kind);
        self
    }

    /// Whether the key has a meaning in a table of this kind.
    pub fn belongs(&self, kind: &str) -> bool {
        self.only.is_none_or(|only| kind.starts_with(only))
    }

    /// Last part of the path.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// Path of the table that holds it; empty at the top.
    pub fn table(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(table, _)| table)
    }
}

const fn key(path: &'static str, want: Want, meaning: &'static str, source: &'static str) -> Key {
    Key { path, want, need: Need::Default, only: None, meaning, source }
}

use Want::{Flag, Like, List, OneOf, Path, Real, Reals, Text, Whole, Wholes};

const MAX: i64 = u32::MAX as i64;
const INF: f64 = f64::INFINITY;
/// Lower bound of ranges that exclude 0.
const TINY: f64 = f64::MIN_POSITIVE;

const PAPER: &str = "the paper";
const MMDET: &str = "mmdetection 2.13";
const MMCV: &str = "mmcv 1";
const OURS: &str = "upres";

/// All keys, in the order of docs/recipes.md.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("name", Text, "names the run directory; left out: the file's name", OURS).optional(),
    key("seed", Whole(0, i64::MAX), "seed of every random number: weights, order, augmentation, samples", OURS),
    key("threads", Whole(0, 4096), "threads of the CPU back end; 0: every core", OURS),
    key("init.weights", Path, "what to start from: a checkpoint, or weights of torchvision or mmdetection (docs/interchange.md); left out: from scratch", PAPER).optional(),
    // model
    key("model.detector", OneOf(&["faster_rcnn", "cascade_rcnn", "mask_rcnn", "retinanet"]), "detector family; the defaults of the other tables are its own (shown: faster_rcnn)", PAPER),
    key(
        "model.backbone.kind",
        OneOf(&["resnet18", "resnet34", "resnet50", "resnet101", "swin_t", "swin_s", "swin_b"]),
        "ResNet, stride in the 3×3 convolution, or Swin Transformer",
        PAPER,
    ),
    key("model.backbone.width", Real(0.05, 8.0), "multiplies every channel count, rounded to a multiple of 8 (Swin: the embedding, in heads of 32 channels)", OURS),
    key("model.backbone.norm_eps", Real(0.0, 1.0), "batch norm: added to the variance", "PyTorch").only("resnet"),
    key("model.backbone.norm_momentum", Real(TINY, 1.0), "batch norm: share of the new batch in the running statistics", "PyTorch").only("resnet"),
    key("model.backbone.zero_init_residual", Flag, "start each residual branch at zero", PAPER).only("resnet"),
    key("model.backbone.window", Whole(2, 12), "side of an attention window in tokens", "Liu et al. 2021").only("swin"),
    key("model.backbone.init", OneOf(&["trunc_normal", "lecun_normal"]), "initial values of linear layers: deviation 0.02, or variance 1 / fan_in, with which narrow networks learn faster", PAPER).only("swin"),
    key("model.backbone.drop_path", Real(0.0, 0.9), "chance to drop a residual branch of the last block, rising to it linearly from 0", PAPER).only("swin"),
    key("model.fpn.channels", Whole(1, 65_536), "channels of every level", MMDET),
    key("model.fpn.levels", Whole(3, 6), "number of levels: P2 to P6 are 5", MMDET),
    key("model.fpn.start", Whole(2, 3), "finest level: 2 is P2, 3 is P3", MMDET),
    key("model.fpn.extra", OneOf(&["subsample", "conv_c5", "conv_p5"]), "levels above P5: every second pixel; convolutions of stride 2, the first on C5 or on P5", MMDET),
    key("model.fpn.extra_relu", Flag, "a ReLU between the convolutions above P5 (torchvision; unused by `subsample`)", MMDET),
    key("model.rpn.channels", Whole(1, 65_536), "channels of the shared 3×3 convolution", MMDET),
    key("model.rpn.anchor_scales", Reals(None, TINY, INF), "anchor side in strides", MMDET),
    key("model.rpn.anchor_ratios", Reals(None, TINY, INF), "anchor height over width", MMDET),
    key("model.rpn.anchor_rounding", Flag, "anchor corners are whole pixels (torchvision)", MMDET),
    key("model.rpn.strides", Wholes(1, 1024), "stride of each level in pixels", MMDET),
    key("model.rpn.pos_iou", Real(0.0, 1.0), "IoU from which an anchor is positive", MMDET),
    key("model.rpn.neg_iou", Real(0.0, 1.0), "IoU below which an anchor is negative", MMDET),
    key("model.rpn.min_pos_iou", Real(0.0, 1.0), "least IoU with which a box may claim its best anchors", MMDET),
    key("model.rpn.samples", Whole(1, MAX), "anchors sampled from an image", MMDET),
    key("model.rpn.pos_fraction", Real(0.0, 1.0), "share of the samples that may be positive", MMDET),
    key("model.rpn.allowed_border", Real(-1.0, INF), "pixels that an anchor may leave the image; -1: no limit", MMDET),
    key("model.rpn.stds", Reals(Some(4), TINY, INF), "deltas are divided by these", MMDET),
    key("model.rpn.smooth_l1_beta", Real(0.0, INF), "smooth L1 turns linear here; 0: plain L1", MMDET),
    key("model.rpn.cls_loss_weight", Real(0.0, INF), "weight of the objectness loss", MMDET),
    key("model.rpn.box_loss_weight", Real(0.0, INF), "weight of the box loss", MMDET),
    key("model.rpn.train_nms_pre", Whole(1, MAX), "boxes kept per level before NMS, training", MMDET),
    key("model.rpn.train_max", Whole(1, MAX), "proposals per image, training", MMDET),
    key("model.rpn.test_nms_pre", Whole(1, MAX), "boxes kept per level before NMS, evaluation", MMDET),
    key("model.rpn.test_max", Whole(1, MAX), "proposals per image, evaluation", MMDET),
    key("model.rpn.nms_iou", Real(0.0, 1.0), "NMS threshold", MMDET),
    key("model.box_head.kind", OneOf(&["shared_4conv_1fc", "shared_2fc"]), "layers shared by both outputs", PAPER),
    key("model.box_head.conv_channels", Whole(1, 65_536), "channels of the four convolutions (unused by `shared_2fc`)", PAPER),
    key("model.box_head.fc_channels", Whole(1, 65_536), "channels of the fully connected layers", PAPER),
    key("model.box_head.pool", Whole(1, 64), "side of the pooled features", MMDET),
    key("model.box_head.sampling_ratio", Whole(0, 64), "RoIAlign samples per bin and axis; 0: adapts to the RoI", MMDET),
    key("model.box_head.aligned", Flag, "RoIAlign takes pixel centres (torchvision: not)", MMDET),
    key("model.box_head.finest_scale", Real(TINY, INF), "RoIs with a side below twice this come from P2, below four times from P3, …", MMDET),
    key("model.box_head.samples", Whole(1, MAX), "RoIs sampled from an image", MMDET),
    key("model.box_head.pos_fraction", Real(0.0, 1.0), "share of the samples that may be positive", MMDET),
    key("model.box_head.pos_iou", Real(0.0, 1.0), "IoU from which a RoI is positive", MMDET),
    key("model.box_head.neg_iou", Real(0.0, 1.0), "IoU below which a RoI is negative", MMDET),
    key("model.box_head.min_pos_iou", Real(0.0, 1.0), "least IoU with which a box may claim its best RoIs", MMDET),
    key("model.box_head.match_low_quality", Flag, "let each box claim its best RoIs", MMDET),
    key("model.box_head.add_gt", Flag, "add the ground truth to the proposals", MMDET),
    key("model.box_head.stds", Reals(Some(4), TINY, INF), "deltas are divided by these", MMDET),
    key("model.box_head.class_agnostic", Flag, "one set of deltas for all classes", MMDET),
    key("model.box_head.smooth_l1_beta", Real(0.0, INF), "smooth L1 turns linear here; 0: plain L1", MMDET),
    key("model.box_head.cls_loss_weight", Real(0.0, INF), "weight of the classification loss", MMDET),
    key("model.box_head.box_loss_weight", Real(0.0, INF), "weight of the box loss", MMDET),
    key("model.box_head.score_threshold", Real(0.0, 1.0), "detections need a score above this", MMDET),
    key("model.box_head.nms_iou", Real(0.0, 1.0), "NMS threshold of each class", MMDET),
    key("model.box_head.max_detections", Whole(1, MAX), "detections per image", MMDET),
    key("model.cascade.ious", Reals(Some(3), 0.0, 1.0), "IoU from which a RoI is positive, else negative, in each stage (in place of `box_head.pos_iou`, `neg_iou` and `min_pos_iou`)", MMDET),
    key("model.cascade.stds", Reals(Some(12), TINY, INF), "deltas are divided by these, four for each stage (in place of `box_head.stds`)", MMDET),
    key("model.cascade.loss_weights", Reals(Some(3), 0.0, INF), "weight of both losses of each stage", MMDET),
    key("model.mask_head.convs", Whole(0, 64), "3×3 convolutions", MMDET),
    key("model.mask_head.channels", Whole(1, 65_536), "channels of the convolutions", MMDET),
    key("model.mask_head.pool", Whole(1, 64), "side of the pooled features; masks have twice that", MMDET),
    key("model.mask_head.sampling_ratio", Whole(0, 64), "RoIAlign samples per bin and axis; 0: adapts to the RoI", MMDET),
    key("model.mask_head.aligned", Flag, "RoIAlign takes pixel centres (torchvision: not)", MMDET),
    key("model.mask_head.loss_weight", Real(0.0, INF), "weight of the mask loss", MMDET),
    key("model.mask_head.threshold", Real(0.0, 1.0), "pixels of a detection's mask have at least this probability", MMDET),
    key("model.retina_head.convs", Whole(0, 64), "3×3 convolutions of each branch", MMDET),
    key("model.retina_head.channels", Whole(1, 65_536), "channels of the convolutions", MMDET),
    key("model.retina_head.octave_scale", Real(TINY, INF), "anchor side in strides, of the smallest in an octave", MMDET),
    key("model.retina_head.scales_per_octave", Whole(1, 64), "anchor sides between a power of two and the next", MMDET),
    key("model.retina_head.anchor_ratios", Reals(None, TINY, INF), "anchor height over width", MMDET),
    key("model.retina_head.anchor_rounding", Flag, "anchor corners are whole pixels (torchvision)", MMDET),
    key("model.retina_head.strides", Wholes(1, 1024), "stride of each level in pixels", MMDET),
    key("model.retina_head.pos_iou", Real(0.0, 1.0), "IoU from which an anchor is positive", MMDET),
    key("model.retina_head.neg_iou", Real(0.0, 1.0), "IoU below which an anchor is negative", MMDET),
    key("model.retina_head.min_pos_iou", Real(0.0, 1.0), "least IoU with which a box may claim its best anchors", MMDET),
    key("model.retina_head.allowed_border", Real(-1.0, INF), "pixels that an anchor may leave the image; -1: no limit", MMDET),
    key("model.retina_head.stds", Reals(Some(4), TINY, INF), "deltas are divided by these", MMDET),
    key("model.retina_head.focal_alpha", Real(0.0, 1.0), "focal loss: weight of positives", "Lin et al. 2017"),
    key("model.retina_head.focal_gamma", Real(0.0, 10.0), "focal loss: exponent of the error", "Lin et al. 2017"),
    key("model.retina_head.prior", Real(TINY, 0.5), "probability that an anchor starts with, for each class", "Lin et al. 2017"),
    key("model.retina_head.cls_loss_weight", Real(0.0, INF), "weight of the classification loss", MMDET),
    key("model.retina_head.box_loss_weight", Real(0.0, INF), "weight of the box loss", MMDET),
    key("model.retina_head.smooth_l1_beta", Real(0.0, INF), "smooth L1 turns linear here; 0: plain L1", MMDET),
    key("model.retina_head.selection", OneOf(&["anchors", "pairs"]), "kept of each level before NMS: `anchors` with all classes (mmdetection 2), or (anchor, class) `pairs` (mmdetection 3, torchvision)", MMDET),
    key("model.retina_head.nms_pre", Whole(1, MAX), "how many of them", MMDET),
    key("model.retina_head.max_pairs", Whole(1, MAX), "`anchors`: (anchor, class) pairs of an image that enter NMS, the best of those above the threshold", OURS),
    key("model.retina_head.score_threshold", Real(0.0, 1.0), "detections need a score above this", MMDET),
    key("model.retina_head.nms_iou", Real(0.0, 1.0), "NMS threshold of each class", MMDET),
    key("model.retina_head.max_detections", Whole(1, MAX), "detections per image", MMDET),
    // data
    key("data.built_in", OneOf(&["shapes"]), "a data set that upres makes itself where its folder is absent", OURS).optional(),
    key("data.mean", Reals(Some(3), -INF, INF), "subtracted from each channel (RGB, 0 to 255)", PAPER),
    key("data.std", Reals(Some(3), TINY, INF), "each channel is then divided by this", PAPER),
    key("data.bad_images", OneOf(&["fail", "skip"]), "an image that is missing or cannot be decoded: stop, or leave it out and list it", OURS),
    key("data.keep_empty", Flag, "train on images without a box too", MMDET),
    key("data.min_image_size", Whole(0, MAX), "training images with a shorter side are left out", MMDET),
    key("data.workers", Whole(0, 4096), "loader threads; 0: one for each core", OURS),
    key("data.prefetch", Whole(1, 1024), "batches prepared ahead", OURS),
    key("data.cache_mib", Whole(0, MAX), "memory for decoded images in MiB; 0: decode anew each time", OURS),
    key("data.shapes.folder", Path, "where the built-in data set is made; another folder for other options", OURS),
    key("data.shapes.seed", Whole(0, i64::MAX), "same seed, same bytes", OURS),
    key("data.shapes.train", Whole(1, 500_000), "training images", OURS),
    key("data.shapes.val", Whole(1, 500_000), "validation images", OURS),
    key("data.shapes.size", Whole(64, 4096), "longer side of an image in pixels", OURS),
    key("data.train.annotations", Path, "COCO JSON file of the images to train on", OURS).in_table(),
    key("data.train.images", Path, "folder that its file names are relative to", OURS).in_table(),
    key("data.val.annotations", Path, "COCO JSON file of the images to evaluate on while training", OURS).in_table(),
    key("data.val.images", Path, "folder that its file names are relative to", OURS).in_table(),
    key("data.test.annotations", Path, "COCO JSON file of the images to evaluate on at the end", OURS).in_table(),
    key("data.test.images", Path, "folder that its file names are relative to", OURS).in_table(),
    // stage
    key("stage.*.name", Text, "name in the log, in checkpoints and in `--set stage.NAME.key=value`", OURS).required(),
    key("stage.*.epochs", Whole(1, MAX), "length in (repeated) passes over the training set; this or `steps`", PAPER).optional(),
    key("stage.*.steps", Whole(1, i64::MAX), "length in optimizer steps; this or `epochs`", OURS).optional(),
    key("stage.*.repeat", Whole(1, 1_000_000), "one epoch is this many passes", PAPER),
    key("stage.*.images_per_step", Whole(1, 1_000_000), "images of one optimizer step", PAPER).required(),
    key("stage.*.micro_batch", Whole(1, 1_000_000), "images of one forward and backward pass (batch norm sees these); divides `images_per_step`", PAPER).required(),
    key("stage.*.eval_batch", Whole(1, 1_000_000), "images of an evaluation pass: no result depends on it; left out: as `micro_batch`", OURS).optional(),
    key("stage.*.flip", Real(0.0, 1.0), "chance to mirror an image", PAPER),
    key("stage.*.vertical_flip", Real(0.0, 1.0), "chance to mirror an image top to bottom", OURS),
    key("stage.*.batch_norm", OneOf(&["train", "eval", "frozen"]), "`train`: batch statistics; `eval`: running statistics, scale and bias trained (mmdetection's `norm_eval`); `frozen`: running statistics, nothing trained", PAPER),
    key("stage.*.frozen_stages", Whole(-1, 4), "frozen parts of the backbone: -1 none, 0 the stem, n the stem and the first n layers", PAPER),
    key("stage.*.precision", OneOf(&["auto", "f32", "f16", "bf16"]), "storage of activations in training (weights, statistics, losses, boxes and evaluations are f32); `auto`: bf16 on GPUs from compute capability 8.0 on, f16 on older ones, f32 on the CPU; `f16` has a dynamic loss scale", OURS),
    key("stage.*.recompute", OneOf(&["none", "norms", "blocks"]), "`norms`: outputs of batch norm with ReLU, or of layer norm and GELU, are made again from their inputs (not in 16 bits on the CPU, and not where batch norm is frozen); `blocks`: of the backbone's blocks, and ResNet's stem, only the inputs are kept, and the backward pass runs them again: less memory, one more forward pass of the backbone", OURS),
    key("stage.*.clip_grad_norm", Real(0.0, INF), "gradients are scaled down to this norm; 0: off", PAPER),
    key("stage.*.ema", Real(0.0, 0.999_999_999), "decay of the averaged weights that are evaluated; 0: off", PAPER),
    key("stage.*.eval_every_epochs", Real(0.0, INF), "evaluate after so many epochs; 0: only at the end of the stage", MMDET),
    key("stage.*.checkpoint_every_steps", Whole(0, i64::MAX), "write the last checkpoint after so many steps; 0: only with evaluations", OURS),
    key("stage.*.keep_checkpoints", Whole(0, 100_000), "older checkpoints kept next to last and best", OURS),
    key("stage.*.resize.kind", OneOf(&["fit_crop", "keep_ratio"]), "`fit_crop`: scale to fit a square × jitter, crop and pad to it; `keep_ratio`: scale to fit, pad to one of a few shapes", PAPER).required(),
    key("stage.*.resize.size", Whole(32, 8192), "side of the square", PAPER).in_table().only("fit_crop"),
    key("stage.*.resize.jitter", Reals(Some(2), 0.01, 16.0), "range of the random scale", PAPER).only("fit_crop"),
    key("stage.*.resize.long", Whole(32, 16_384), "limit of the longer side", PAPER).in_table().only("keep_ratio"),
    key("stage.*.resize.short", Whole(32, 16_384), "limit of the shorter side", PAPER).in_table().only("keep_ratio"),
    key("stage.*.resize.pad_to", Whole(1, 1024), "padded sides are multiples of this", PAPER).only("keep_ratio"),
    key("stage.*.resize.buckets", Whole(1, 64), "at most so many padded shapes in all", OURS).only("keep_ratio"),
    key("stage.*.eval_resize", Like("stage.*.resize"), "resize of evaluation images; left out: as `resize`, without its randomness", OURS).optional(),
    key("stage.*.colour_jitter.brightness", Real(0.0, 1.0), "random factor from 1 ± this", PAPER),
    key("stage.*.colour_jitter.contrast", Real(0.0, 1.0), "random factor from 1 ± this", PAPER),
    key("stage.*.colour_jitter.saturation", Real(0.0, 1.0), "random factor from 1 ± this", PAPER),
    key("stage.*.colour_jitter.hue", Real(0.0, 0.5), "random turn from ± this (0.5: half the circle)", PAPER),
    key("stage.*.optimizer.kind", OneOf(&["sgd", "adamw"]), "`sgd`: gradient descent with momentum; `adamw`: Adam with decoupled weight decay", PAPER),
    key("stage.*.optimizer.lr", Real(TINY, INF), "learning rate for steps of `lr_batch` images", PAPER).required(),
    key("stage.*.optimizer.lr_batch", Whole(0, MAX), "images a step that `lr` is stated for, scaled linearly to `images_per_step`; left out: the file's `images_per_step`; 0: never scaled", PAPER).optional(),
    key("stage.*.optimizer.momentum", Real(0.0, 1.0), "momentum", PAPER).only("sgd"),
    key("stage.*.optimizer.nesterov", Flag, "Nesterov's momentum", PAPER).only("sgd"),
    key("stage.*.optimizer.betas", Reals(Some(2), 0.0, 0.999_999_999), "decay of the running means of the gradient and of its square", PAPER).only("adamw"),
    key("stage.*.optimizer.eps", Real(TINY, 1.0), "added to the root of the running mean of squares", "PyTorch").only("adamw"),
    key("stage.*.optimizer.weight_decay", Real(0.0, INF), "weight decay", PAPER),
    key("stage.*.optimizer.norm_decay", Flag, "decay the scale and bias of norms (the paper's pre-training does not)", PAPER),
    key("stage.*.optimizer.bias_decay", Flag, "decay the biases of convolutions and linear layers", PAPER),
    key("stage.*.optimizer.state", OneOf(&["f32", "bf16", "auto"]), "storage of momentum, or of AdamW's two running means: `bf16` is half the memory, rounded stochastically (docs/numerics.md), and another result; `auto`: f32, unless a stage fits `--memory`, or what a GPU has free, in no other way", OURS),
    key("stage.*.schedule.kind", OneOf(&["constant", "step", "cosine"]), "shape after warm-up", PAPER),
    key("stage.*.schedule.warmup_steps", Whole(0, i64::MAX), "linear warm-up over so many steps; 0: none", PAPER),
    key("stage.*.schedule.warmup_ratio", Real(0.0, 1.0), "share of the rate at step 0", PAPER),
    key("stage.*.schedule.drop_epochs", List(TINY, INF), "`step`: epochs (from 0) that start with a drop", MMDET),
    key("stage.*.schedule.drop_factor", Real(0.0, 1.0), "`step`: factor of a drop", MMCV),
    key("stage.*.schedule.final_ratio", Real(0.0, 1.0), "`cosine`: share of the rate at the end", MMCV),
    // expect
    key("expect.split", OneOf(&["val", "test"]), "split that the numbers are of", OURS),
    key("expect.bbox_ap", Real(0.0, 100.0), "COCO AP of boxes that a finished run must reach, per cent", OURS).optional(),
    key("expect.bbox_ap50", Real(0.0, 100.0), "COCO AP at IoU 0.5, per cent", OURS).optional(),
    key("expect.segm_ap", Real(0.0, 100.0), "COCO AP of masks, per cent", OURS).optional(),
    key("expect.segm_ap50", Real(0.0, 100.0), "COCO AP of masks at IoU 0.5, per cent", OURS).optional(),
    key("expect.window", Real(0.0, 100.0), "accepted shortfall, per cent points", OURS).in_table(),
];
