//! Region proposal network (Ren et al. 2015) on a feature pyramid: predicts objectness and box deltas for each anchor,
//! selects proposals from the best anchors, and computes losses on a sample of anchors.

use super::common::{Loss, Sampling, branch, in_f32};
use super::config::RpnConfig;
use super::inputs::Inputs;
use crate::error::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Init};
use crate::ops::avg_factor::{AvgFactor, avg_factor};
use crate::ops::bce::bce;
use crate::ops::box_decode::box_decode;
use crate::ops::box_encode::box_encode;
use crate::ops::concat_rows::concat_rows;
use crate::ops::conv2d::Activation;
use crate::ops::gather_rows::{gather_rows, gather_rows_of};
use crate::ops::match_boxes::Matcher;
use crate::ops::nms::{Nms, nms};
use crate::ops::rpn_targets::rpn_targets;
use crate::ops::sample::{Sampled, Sampler, sample};
use crate::ops::smooth_l1::smooth_l1;
use crate::ops::top_k::top_k;
use crate::ops::valid_groups::valid_groups;
use crate::philox::Purpose;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The RPN head, shared by all levels.
pub struct Rpn {
    conv: Conv2d,
    cls: Conv2d,
    reg: Conv2d,
    cfg: RpnConfig,
}

/// Raw outputs for all anchors, level after level.
pub struct RpnOutput {
    /// Objectness `[B,N,1]`.
    pub logits: Var,
    /// Deltas `[B,N,4]`.
    pub deltas: Var,
}

/// Boxes for the second stage.
pub struct Proposals {
    /// `[B,P,4]`, best first.
    pub boxes: Tensor,
    /// Objectness logits `[B,P]`.
    pub logits: Tensor,
    /// 1, or -1 where there is no box; i32 `[B,P]`.
    pub valid: Tensor,
}

/// Training targets of the M = B·S sampled anchors.
pub struct RpnTargets {
    /// 1 object, 0 background, -1 padding; i32 `[M]`.
    pub objects: Tensor,
    /// 0 for positives, which have a box to learn, else -1; i32 `[M]`.
    pub box_labels: Tensor,
    /// Deltas `[M,4]`.
    pub boxes: Tensor,
}

impl Rpn {
    /// A head with initial weights, for features of `c_in` channels.
    pub fn new(b: &mut Builder<'_>, cfg: &RpnConfig, c_in: usize) -> Result<Self> {
        let init = Init::Normal(0.01);
        let a = cfg.anchors().per_cell();
        Ok(Rpn {
            conv: Conv2d::new(&mut b.sub("rpn_conv"), ConvSpec::new(c_in, cfg.channels, init).kernel(3))?,
            cls: Conv2d::new(&mut b.sub("rpn_cls"), ConvSpec::new(cfg.channels, a, init))?,
            reg: Conv2d::new(&mut b.sub("rpn_reg"), ConvSpec::new(cfg.channels, 4 * a, init))?,
            cfg: cfg.clone(),
        })
    }

    /// Losses of a training pass, and its proposals: the given ones, or else those of this network.
    pub fn train(
        &self,
        tape: &mut Tape,
        p: &[Var],
        inputs: &Inputs,
        how: Sampling,
        given: Option<Proposals>,
    ) -> Result<(Vec<Loss>, Proposals)> {
        tape.scope("rpn", |tape| {
            branch(tape, p, |tape, p| {
                let out = self.forward(tape, p)?;
                let losses = self.losses(tape, &out, inputs, how)?;
                Ok((losses, given.map_or_else(|| self.train_proposals(&out, inputs), Ok)?))
            })
        })
    }

    /// Proposals of an evaluation pass.
    pub fn test(&self, tape: &mut Tape, p: &[Var], inputs: &Inputs) -> Result<Proposals> {
        tape.scope("rpn", |tape| {
            let out = self.forward(tape, p)?;
            self.test_proposals(&out, inputs)
        })
    }

    /// Computes logits and deltas of every anchor from P2 to P6.
    pub fn forward(&self, tape: &mut Tape, features: &[Var]) -> Result<RpnOutput> {
        let (mut logits, mut deltas) = (Vec::new(), Vec::new());
        for x in features {
            let t = self.conv.forward(tape, x, Activation::Relu)?;
            logits.push(self.cls.forward(tape, &t, Activation::None)?);
            deltas.push(self.reg.forward(tape, &t, Activation::None)?);
        }
        let logits = concat_rows(tape, &logits.iter().collect::<Vec<_>>(), 1)?;
        let deltas = concat_rows(tape, &deltas.iter().collect::<Vec<_>>(), 4)?;
        Ok(RpnOutput { logits: in_f32(tape, logits)?, deltas: in_f32(tape, deltas)? })
    }

    /// Selects proposals: decodes the `nms_pre` best anchors of each level, drops empty boxes, applies NMS within
    /// levels and keeps the `max` best.
    pub fn proposals(&self, out: &RpnOutput, inputs: &Inputs, nms_pre: usize, max: usize) -> Result<Proposals> {
        let b = inputs.batch();
        let (logits, deltas) = (out.logits.value(), out.deltas.value());
        let n = logits.dim(1);
        let (mut segments, mut groups, mut start) = (Vec::new(), Vec::new(), 0);
        for (level, len) in inputs.anchors.level_sizes().into_iter().enumerate() {
            let k = nms_pre.min(len);
            segments.push((start, len, k));
            groups.push((k, level as i32));
            start += len;
        }
        let best = top_k(&logits.reshape(&[b, n])?, &segments)?;
        let boxes = box_decode(&inputs.anchors.boxes, deltas, Some(&best), &inputs.sizes, self.cfg.stds)?;
        let groups = valid_groups(&boxes, &best, &groups)?;
        let k = best.dim(1);
        let scores = gather_rows_of(logits, &best)?.reshape(&[b, k])?;
        let keep = nms(
            &boxes,
            &scores,
            &groups,
            Nms { iou_threshold: self.cfg.nms_iou, groups: inputs.anchors.levels(), max_out: max, offset: true },
        )?;
        let boxes = gather_rows_of(&boxes, &keep)?;
        let logits = gather_rows_of(&scores.reshape(&[b, k, 1])?, &keep)?.reshape(&[b, max])?;
        let valid = valid_groups(&boxes, &keep, &[(max, 1)])?;
        Ok(Proposals { boxes, logits, valid })
    }

    /// Proposals of a training pass.
    pub fn train_proposals(&self, out: &RpnOutput, inputs: &Inputs) -> Result<Proposals> {
        self.proposals(out, inputs, self.cfg.train_nms_pre, self.cfg.train_max)
    }

    /// Proposals of an evaluation pass.
    pub fn test_proposals(&self, out: &RpnOutput, inputs: &Inputs) -> Result<Proposals> {
        self.proposals(out, inputs, self.cfg.test_nms_pre, self.cfg.test_max)
    }

    /// Matches anchors to the ground truth and samples them.
    pub fn sample(&self, inputs: &Inputs, how: Sampling) -> Result<Sampled> {
        let cfg = &self.cfg;
        let (pos_iou, neg_iou, min_pos_iou) = (cfg.pos_iou, cfg.neg_iou, cfg.min_pos_iou);
        let matcher = Matcher { pos_iou, neg_iou, min_pos_iou, low_quality: true };
        let assigned = inputs.match_anchors(matcher, cfg.allowed_border)?;
        let sampler = Sampler { num: cfg.samples, pos_fraction: cfg.pos_fraction, mode: how.mode(Purpose::SampleRpn) };
        sample(&assigned, &sampler, &inputs.key)
    }

    /// Computes the training targets of the sampled anchors.
    pub fn targets(&self, samples: &Sampled, inputs: &Inputs) -> Result<RpnTargets> {
        let chosen = gather_rows_of(&inputs.anchors.boxes, &samples.idx)?;
        let boxes = box_encode(&chosen, &inputs.gt_boxes, &samples.gt, self.cfg.stds)?;
        let (objects, box_labels) = rpn_targets(&samples.gt, &samples.idx)?;
        Ok(RpnTargets { objects, box_labels, boxes: boxes.reshape(&[samples.idx.numel(), 4])? })
    }

    /// Objectness and box losses of the sampled anchors. Both are divided by mmdetection's number of samples: `sum over
    /// images of max(1, positives) + max(1, negatives)`.
    pub fn losses(&self, tape: &mut Tape, out: &RpnOutput, inputs: &Inputs, how: Sampling) -> Result<Vec<Loss>> {
        let cfg = &self.cfg;
        let samples = self.sample(inputs, how)?;
        let avg = avg_factor(&samples.counts, AvgFactor::Rpn)?;
        let RpnTargets { objects, box_labels, boxes } = self.targets(&samples, inputs)?;
        let logits = gather_rows(tape, &out.logits, &samples.idx)?;
        let deltas = gather_rows(tape, &out.deltas, &samples.idx)?;
        let cls = bce(tape, &logits, &objects, &avg, cfg.cls_loss_weight)?;
        let reg = smooth_l1(tape, &deltas, &boxes, &box_labels, cfg.smooth_l1_beta, &avg, cfg.box_loss_weight)?;
        Ok(vec![Loss { name: "rpn_cls", value: cls }, Loss { name: "rpn_box", value: reg }])
    }
}
