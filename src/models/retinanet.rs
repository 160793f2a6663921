//! RetinaNet (Lin et al. 2017): classifies every anchor without proposals. The focal loss keeps the many easy anchors
//! from dominating.
//!
//! ```text
//! P3..P7 ┬→ 4 × conv → K scores for each anchor
//!        └→ 4 × conv → 4 deltas for each anchor
//! ```

use super::common::{BoxFrame, Detections, Loss, in_f32};
use super::config::{ModelConfig, RetinaHeadConfig, Selection};
use super::inputs::Inputs;
use crate::detection::dense::{DenseConfig, Shortlist, dense_detections};
use crate::error::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Init};
use crate::ops::avg_factor::{AvgFactor, avg_factor};
use crate::ops::concat_rows::concat_rows;
use crate::ops::conv2d::Activation;
use crate::ops::dense_targets::{DenseTargets, dense_targets};
use crate::ops::match_boxes::Matcher;
use crate::ops::sigmoid_focal::sigmoid_focal;
use crate::ops::smooth_l1::smooth_l1;
use crate::tape::{Tape, Var};

/// The head of RetinaNet, shared by all levels.
pub struct RetinaNet {
    cls_convs: Vec<Conv2d>,
    reg_convs: Vec<Conv2d>,
    cls: Conv2d,
    reg: Conv2d,
    cfg: RetinaHeadConfig,
    classes: usize,
}

/// Raw outputs for all anchors, level after level.
pub struct RetinaOutput {
    /// `[B,N,K]`.
    pub logits: Var,
    /// Deltas `[B,N,4]`.
    pub deltas: Var,
}

impl RetinaNet {
    /// Names of the losses, in their order.
    pub const LOSSES: [&str; 2] = ["cls", "box"];

    /// A head for `classes` classes, with initial weights.
    pub fn new(b: &mut Builder<'_>, cfg: &ModelConfig, classes: usize) -> Result<Self> {
        let (c_in, cfg) = (cfg.fpn.channels, &cfg.retina_head);
        let (init, a, c) = (Init::Normal(0.01), cfg.anchors().per_cell(), cfg.channels);
        let mut b = b.sub("bbox_head");
        let mut branch = |name: &str| -> Result<Vec<Conv2d>> {
            let of = |i| if i == 0 { c_in } else { c };
            let conv = |i| Conv2d::new(&mut b.sub(format!("{name}.{i}.conv")), ConvSpec::new(of(i), c, init).kernel(3));
            (0..cfg.convs).map(conv).collect()
        };
        let (cls_convs, reg_convs) = (branch("cls_convs")?, branch("reg_convs")?);
        let c = if cfg.convs == 0 { c_in } else { c };
        let bias = -((1.0 - cfg.prior) / cfg.prior).ln();
        Ok(RetinaNet {
            cls_convs,
            reg_convs,
            cls: Conv2d::new(&mut b.sub("retina_cls"), ConvSpec::new(c, a * classes, init).kernel(3).bias(bias))?,
            reg: Conv2d::new(&mut b.sub("retina_reg"), ConvSpec::new(c, 4 * a, init).kernel(3))?,
            cfg: cfg.clone(),
            classes,
        })
    }

    /// Computes logits and deltas of every anchor from P3 to P7.
    pub fn forward(&self, tape: &mut Tape, p: &[Var]) -> Result<RetinaOutput> {
        let (mut logits, mut deltas) = (Vec::new(), Vec::new());
        for x in p {
            for (convs, last, out) in
                [(&self.cls_convs, &self.cls, &mut logits), (&self.reg_convs, &self.reg, &mut deltas)]
            {
                let mut t = x.clone();
                for conv in convs {
                    t = conv.forward(tape, &t, Activation::Relu)?;
                }
                out.push(last.forward(tape, &t, Activation::None)?);
            }
        }
        let logits = concat_rows(tape, &logits.iter().collect::<Vec<_>>(), self.classes)?;
        let deltas = concat_rows(tape, &deltas.iter().collect::<Vec<_>>(), 4)?;
        Ok(RetinaOutput { logits: in_f32(tape, logits)?, deltas: in_f32(tape, deltas)? })
    }

    /// Computes the training targets of every anchor.
    pub fn targets(&self, inputs: &Inputs) -> Result<DenseTargets> {
        let cfg = &self.cfg;
        let (pos_iou, neg_iou, min_pos_iou) = (cfg.pos_iou, cfg.neg_iou, cfg.min_pos_iou);
        let matcher = Matcher { pos_iou, neg_iou, min_pos_iou, low_quality: true };
        let assigned = inputs.match_anchors(matcher, cfg.allowed_border)?;
        let (gt, background) = ((&inputs.gt_boxes, &inputs.gt_labels), self.classes as i32);
        dense_targets(&inputs.anchors.boxes, &assigned, gt.0, gt.1, background, cfg.stds)
    }

    /// Losses of one training pass, both divided by the number of positive anchors.
    pub fn losses(&self, tape: &mut Tape, p: Vec<Var>, inputs: &Inputs) -> Result<Vec<Loss>> {
        tape.scope("retina_head", |tape| {
            let out = self.forward(tape, &p)?;
            drop(p);
            self.losses_of(tape, &out, inputs)
        })
    }

    /// Computes the losses from raw outputs.
    pub fn losses_of(&self, tape: &mut Tape, out: &RetinaOutput, inputs: &Inputs) -> Result<Vec<Loss>> {
        let cfg = &self.cfg;
        let t = self.targets(inputs)?;
        let avg = avg_factor(&t.counts, AvgFactor::Dense)?;
        let (alpha, gamma) = (cfg.focal_alpha, cfg.focal_gamma);
        let cls = sigmoid_focal(tape, &out.logits, &t.classes, &avg, alpha, gamma, cfg.cls_loss_weight)?;
        let (beta, weight) = (cfg.smooth_l1_beta, cfg.box_loss_weight);
        let reg = smooth_l1(tape, &out.deltas, &t.boxes, &t.box_labels, beta, &avg, weight)?;
        Ok(vec![Loss { name: "cls", value: cls }, Loss { name: "box", value: reg }])
    }

    /// Detections of one evaluation pass. In [`BoxFrame::Original`], boxes are divided by the image's scale before NMS.
    pub fn detect(&self, tape: &mut Tape, p: Vec<Var>, inputs: &Inputs, frame: BoxFrame) -> Result<Detections> {
        tape.scope("retina_head", |tape| {
            let out = self.forward(tape, &p)?;
            drop(p);
            self.detections(&out, inputs, frame)
        })
    }

    /// Computes detections from raw outputs.
    pub fn detections(&self, out: &RetinaOutput, inputs: &Inputs, frame: BoxFrame) -> Result<Detections> {
        let cfg = &self.cfg;
        let how = DenseConfig {
            nms_pre: cfg.nms_pre,
            shortlist: match cfg.selection {
                Selection::Anchors => Shortlist::Anchors { max_pairs: cfg.max_pairs },
                Selection::Pairs => Shortlist::Pairs { min_size_px: 0.0 },
            },
            score_threshold: cfg.score_threshold,
            nms_iou: cfg.nms_iou,
            max_detections: cfg.max_detections,
            stds: cfg.stds,
        };
        let scale = frame.scale(&inputs.scale);
        let (logits, deltas) = (out.logits.value(), out.deltas.value());
        let (boxes, scores, classes) = dense_detections(logits, deltas, &inputs.anchors, &inputs.sizes, scale, &how)?;
        Ok(Detections { boxes, scores, classes, masks: None, frame })
    }
}
