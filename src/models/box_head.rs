//! Second stage of Faster R-CNN: samples proposals, pools RoI features, predicts classes and box deltas (one set per
//! class unless class-agnostic), and computes losses and detections.

use super::common::{BoxFrame, Detections, Loss, Sampling, in_f32};
use super::config::{BoxHeadConfig, BoxHeadKind};
use super::inputs::Inputs;
use crate::detection::kept::detections;
use crate::error::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Init, Linear};
use crate::ops::avg_factor::{AvgFactor, avg_factor};
use crate::ops::box_encode::box_encode;
use crate::ops::boxes_with_gt::boxes_with_gt;
use crate::ops::class_candidates::class_candidates;
use crate::ops::conv2d::Activation;
use crate::ops::gather_rows::gather_rows_of;
use crate::ops::labels::labels;
use crate::ops::match_boxes::{Matcher, match_boxes};
use crate::ops::nms::{Nms, nms};
use crate::ops::refine_boxes::refine_boxes;
use crate::ops::roi_align::{RoiAlign, roi_align};
use crate::ops::rpn_targets::rpn_targets;
use crate::ops::sample::{Sampler, sample};
use crate::ops::smooth_l1::smooth_l1;
use crate::ops::softmax::softmax;
use crate::ops::softmax_ce::softmax_ce;
use crate::ops::with_gt::with_gt;
use crate::philox::Purpose;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The box head: shared layers, a classifier and a box regressor.
pub struct BoxHead {
    convs: Vec<Conv2d>,
    fcs: Vec<Linear>,
    cls: Linear,
    reg: Linear,
    cfg: BoxHeadConfig,
    strides_px: Vec<f32>,
    classes: usize,
}

/// The sampled RoIs of a training pass, each with the ground truth that it is matched to.
pub struct RoiSamples {
    /// `[B,S,4]`.
    pub rois: Tensor,
    /// Row among ground truth then proposals, i32 `[B,S]`; -1 is padding.
    pub idx: Tensor,
    /// Matched ground truth, i32 `[B,S]`; -1 for negatives and padding.
    pub gt: Tensor,
    /// Positives and negatives, i32 `[B,2]`.
    pub counts: Tensor,
}

/// Training targets of the M = B·S sampled RoIs.
pub struct RoiTargets {
    /// Class, K for background, -1 for padding; i32 `[M]`.
    pub classes: Tensor,
    /// Deltas `[M,4]`; zeros unless positive.
    pub boxes: Tensor,
}

/// Raw outputs of the head.
pub struct BoxOutput {
    /// `[R,K+1]`, background last.
    pub logits: Var,
    /// `[R,4K]`, or `[R,4]` if class-agnostic.
    pub deltas: Var,
}

impl BoxHead {
    /// A head with initial weights, for RoI features of `c_in` channels from levels of the given strides.
    pub fn new(
        b: &mut Builder<'_>,
        cfg: &BoxHeadConfig,
        c_in: usize,
        strides_px: Vec<f32>,
        classes: usize,
    ) -> Result<Self> {
        let (convs, fcs) = match cfg.kind {
            BoxHeadKind::Shared4Conv1Fc => (4, 1),
            BoxHeadKind::Shared2Fc => (0, 2),
        };
        let mut c = c_in;
        let mut conv_layers = Vec::new();
        for i in 0..convs {
            let mut s = b.sub(format!("shared_convs.{i}.conv"));
            conv_layers.push(Conv2d::new(&mut s, ConvSpec::new(c, cfg.conv_channels, Init::KaimingFanOut).kernel(3))?);
            c = cfg.conv_channels;
        }
        let mut width = c * cfg.pool * cfg.pool;
        let mut fc_layers = Vec::new();
        for i in 0..fcs {
            let mut s = b.sub(format!("shared_fcs.{i}"));
            fc_layers.push(Linear::new(&mut s, width, cfg.fc_channels, Init::XavierUniform)?);
            width = cfg.fc_channels;
        }
        let sets = if cfg.class_agnostic { 1 } else { classes };
        Ok(BoxHead {
            convs: conv_layers,
            fcs: fc_layers,
            cls: Linear::new(&mut b.sub("fc_cls"), width, classes + 1, Init::Normal(0.01))?,
            reg: Linear::new(&mut b.sub("fc_reg"), width, 4 * sets, Init::Normal(0.001))?,
            cfg: cfg.clone(),
            strides_px,
            classes,
        })
    }

    /// Number of classes, without background.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Matches `boxes` `[B,P,4]` to the ground truth (`valid`: i32 `[B,P]`, -1 = no box), puts the ground truth in
    /// front of them (with `add_gt`) and samples.
    pub fn sample(&self, boxes: &Tensor, valid: &Tensor, inputs: &Inputs, how: Sampling) -> Result<RoiSamples> {
        let cfg = &self.cfg;
        let matcher = Matcher {
            pos_iou: cfg.pos_iou,
            neg_iou: cfg.neg_iou,
            min_pos_iou: cfg.min_pos_iou,
            low_quality: cfg.match_low_quality,
        };
        let mut assigned = match_boxes(boxes, Some(valid), &inputs.gt_boxes, &inputs.gt_count, matcher)?;
        let sampler = Sampler { num: cfg.samples, pos_fraction: cfg.pos_fraction, mode: how.mode(Purpose::SampleRoi) };
        let candidates = if cfg.add_gt {
            assigned = with_gt(&assigned, &inputs.gt_count, inputs.gt_boxes.dim(1))?;
            boxes_with_gt(boxes, &inputs.gt_boxes)?
        } else {
            boxes.clone()
        };
        let s = sample(&assigned, &sampler, &inputs.key)?;
        let rois = gather_rows_of(&candidates, &s.idx)?;
        Ok(RoiSamples { rois, idx: s.idx, gt: s.gt, counts: s.counts })
    }

    /// Computes classes and deltas from the levels P2 to P5 and RoIs `[B,S,4]`. RoIs whose `idx` is -1 are padding, and
    /// nothing is pooled for them.
    pub fn forward(&self, tape: &mut Tape, features: &[Var], rois: &Tensor, idx: &Tensor) -> Result<BoxOutput> {
        let x = self.pool(tape, features, rois, idx)?;
        self.head(tape, x)
    }

    /// Pools RoI features `[R,P,P,C]`.
    pub fn pool(&self, tape: &mut Tape, features: &[Var], rois: &Tensor, idx: &Tensor) -> Result<Var> {
        let cfg = &self.cfg;
        let how = RoiAlign {
            sampling_ratio: cfg.sampling_ratio,
            aligned: cfg.aligned,
            finest_scale_px: cfg.finest_scale,
            ..RoiAlign::new(cfg.pool, cfg.pool)
        };
        let levels: Vec<&Var> = features.iter().take(self.strides_px.len()).collect();
        roi_align(tape, &levels, &self.strides_px, rois, idx, how)
    }

    /// Computes classes and deltas from RoI features.
    pub fn head(&self, tape: &mut Tape, mut x: Var) -> Result<BoxOutput> {
        for conv in &self.convs {
            x = conv.forward(tape, &x, Activation::Relu)?;
        }
        for fc in &self.fcs {
            x = fc.forward(tape, &x, Activation::Relu)?;
        }
        let logits = self.cls.forward(tape, &x, Activation::None)?;
        let deltas = self.reg.forward(tape, &x, Activation::None)?;
        Ok(BoxOutput { logits: in_f32(tape, logits)?, deltas: in_f32(tape, deltas)? })
    }

    /// Computes the training targets of the sampled RoIs.
    pub fn targets(&self, samples: &RoiSamples, inputs: &Inputs) -> Result<RoiTargets> {
        let rows = samples.idx.numel();
        let classes = labels(&samples.gt, &samples.idx, &inputs.gt_labels, self.classes as i32)?;
        let boxes = box_encode(&samples.rois, &inputs.gt_boxes, &samples.gt, self.cfg.stds)?;
        Ok(RoiTargets { classes: classes.reshape(&[rows])?, boxes: boxes.reshape(&[rows, 4])? })
    }

    /// Classification and box losses, both divided by the number of sampled RoIs.
    pub fn losses(&self, tape: &mut Tape, out: &BoxOutput, samples: &RoiSamples, inputs: &Inputs) -> Result<Vec<Loss>> {
        let cfg = &self.cfg;
        let avg = avg_factor(&samples.counts, AvgFactor::Roi)?;
        let RoiTargets { classes, boxes } = self.targets(samples, inputs)?;
        let cls = softmax_ce(tape, &out.logits, &classes, &avg, cfg.cls_loss_weight)?;
        let box_labels = if cfg.class_agnostic { rpn_targets(&samples.gt, &samples.idx)?.1 } else { classes };
        let reg = smooth_l1(tape, &out.deltas, &boxes, &box_labels, cfg.smooth_l1_beta, &avg, cfg.box_loss_weight)?;
        Ok(vec![Loss { name: "roi_cls", value: cls }, Loss { name: "roi_box", value: reg }])
    }

    /// Training input of a cascade's next stage: the samples of this stage without the ground truth, moved by their
    /// predicted deltas. Returns boxes and `valid` as [`BoxHead::sample`] takes them.
    pub fn refine_samples(&self, out: &BoxOutput, samples: &RoiSamples, inputs: &Inputs) -> Result<(Tensor, Tensor)> {
        let truths = if self.cfg.add_gt { inputs.gt_boxes.dim(1) } else { 0 };
        let deltas = out.deltas.value();
        refine_boxes(&samples.rois, deltas, &samples.idx, truths, &inputs.sizes, self.cfg.stds)
    }

    /// Evaluation input of a cascade's next stage: this stage's boxes, moved by their predicted deltas.
    pub fn refine(&self, out: &BoxOutput, boxes: &Tensor, valid: &Tensor, inputs: &Inputs) -> Result<Tensor> {
        Ok(refine_boxes(boxes, out.deltas.value(), valid, 0, &inputs.sizes, self.cfg.stds)?.0)
    }

    /// Keeps scores above the threshold, applies NMS within classes and returns the best `max_detections`. In
    /// [`BoxFrame::Original`], boxes are divided by the image's scale before NMS (as mmdetection does without a mask
    /// head).
    pub fn detections(
        &self,
        out: &BoxOutput,
        boxes: &Tensor,
        valid: &Tensor,
        inputs: &Inputs,
        frame: BoxFrame,
    ) -> Result<Detections> {
        let cfg = &self.cfg;
        let (b, r) = (boxes.dim(0), boxes.dim(1));
        let probs = softmax(out.logits.value())?.reshape(&[b, r, self.classes + 1])?;
        let deltas = out.deltas.value();
        let deltas = deltas.reshape(&[b, r, deltas.dim(1)])?;
        let scale = frame.scale(&inputs.scale);
        let c = class_candidates(&probs, &deltas, boxes, valid, &inputs.sizes, cfg.stds, cfg.score_threshold, scale)?;
        let how = Nms { iou_threshold: cfg.nms_iou, groups: self.classes, max_out: cfg.max_detections, offset: true };
        let keep = nms(&c.boxes, &c.scores, &c.classes, how)?;
        let (boxes, scores, classes) = detections(&c, &keep)?;
        Ok(Detections { boxes, scores, classes, masks: None, frame })
    }
}
