//! Cascade R-CNN (Cai and Vasconcelos 2018).
//!
//! ```text
//! P2..P6 ┬→ RPN → proposals → head 1 → boxes → head 2 → boxes → head 3 → boxes
//!        └→ RoIAlign for each head, which is trained at a higher IoU than the last; classes are the mean of the three
//! ```

use super::box_head::{BoxHead, BoxOutput};
use super::common::{BoxFrame, Detections, Loss, Sampling, branch};
use super::config::{CASCADE_STAGES, ModelConfig};
use super::inputs::Inputs;
use super::rpn::{Proposals, Rpn};
use crate::error::Result;
use crate::nn::Builder;
use crate::tape::{Tape, Var};
use crate::tensor::elementwise::mean;

/// The heads of Cascade R-CNN.
pub struct CascadeRcnn {
    /// The region proposal network.
    pub rpn: Rpn,
    /// The heads that predict classes and boxes, stage by stage.
    pub stages: Vec<BoxHead>,
}

impl CascadeRcnn {
    /// Names of the losses, in their order.
    pub const LOSSES: [&str; 2 + 2 * CASCADE_STAGES] =
        ["rpn_cls", "rpn_box", "s0_cls", "s0_box", "s1_cls", "s1_box", "s2_cls", "s2_box"];

    /// Heads for `classes` classes, with initial weights.
    pub fn new(b: &mut Builder<'_>, cfg: &ModelConfig, classes: usize) -> Result<Self> {
        let c = cfg.fpn.channels;
        let rpn = Rpn::new(&mut b.sub("rpn_head"), &cfg.rpn, c)?;
        let mut stages = Vec::new();
        for i in 0..CASCADE_STAGES {
            let mut head = cfg.box_head.clone();
            head.stds = cfg.cascade.stds_of(i);
            (head.pos_iou, head.neg_iou, head.min_pos_iou) =
                (cfg.cascade.ious[i], cfg.cascade.ious[i], cfg.cascade.ious[i]);
            head.cls_loss_weight *= cfg.cascade.loss_weights[i];
            head.box_loss_weight *= cfg.cascade.loss_weights[i];
            let mut b = b.sub(format!("roi_head.bbox_head.{i}"));
            stages.push(BoxHead::new(&mut b, &head, c, cfg.roi_strides(), classes)?);
        }
        Ok(CascadeRcnn { rpn, stages })
    }

    /// Losses of one training pass. The first stage uses `proposals` instead of the RPN's if they are given.
    pub fn losses(
        &self,
        tape: &mut Tape,
        p: &[Var],
        inputs: &Inputs,
        how: Sampling,
        proposals: Option<Proposals>,
    ) -> Result<Vec<Loss>> {
        let (mut losses, Proposals { mut boxes, mut valid, .. }) = self.rpn.train(tape, p, inputs, how, proposals)?;
        for (i, head) in self.stages.iter().enumerate() {
            let (terms, ()) = tape.scope(&format!("box_head{i}"), |tape| {
                let samples = head.sample(&boxes, &valid, inputs, how)?;
                branch(tape, p, |tape, p| {
                    let out = head.forward(tape, p, &samples.rois, &samples.idx)?;
                    if i + 1 < self.stages.len() {
                        (boxes, valid) = head.refine_samples(&out, &samples, inputs)?;
                    }
                    Ok((head.losses(tape, &out, &samples, inputs)?, ()))
                })
            })?;
            let names = &Self::LOSSES[2 + 2 * i..];
            losses.extend(terms.into_iter().zip(names).map(|(term, name)| Loss { name, ..term }));
        }
        Ok(losses)
    }

    /// Detections of one evaluation pass: boxes are refined three times, class logits are the mean over the heads. In
    /// [`BoxFrame::Original`], boxes are divided by the image's scale before NMS.
    pub fn detect(&self, tape: &mut Tape, p: Vec<Var>, inputs: &Inputs, frame: BoxFrame) -> Result<Detections> {
        let Proposals { mut boxes, valid, .. } = self.rpn.test(tape, &p, inputs)?;
        let (mut logits, mut last) = (Vec::new(), None);
        for (i, head) in self.stages.iter().enumerate() {
            last = Some(tape.scope(&format!("box_head{i}"), |tape| {
                let out = head.forward(tape, &p, &boxes, &valid)?;
                logits.push(out.logits.value().clone());
                if i + 1 < self.stages.len() {
                    boxes = head.refine(&out, &boxes, &valid, inputs)?;
                }
                Ok::<_, crate::Error>(out)
            })?);
        }
        drop(p);
        let mean = mean(&logits.iter().collect::<Vec<_>>())?;
        drop(logits);
        let (head, last) = self.stages.last().zip(last).unwrap_or_else(|| unreachable!("three stages"));
        let out = BoxOutput { logits: tape.constant(mean), deltas: last.deltas };
        head.detections(&out, &boxes, &valid, inputs, frame)
    }
}
