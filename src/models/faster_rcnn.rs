//! Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017).
//!
//! ```text
//! P2..P6 ┬→ RPN → proposals ┐
//!        └→ RoIAlign ←──────┴→ box head → classes, boxes
//! ```

use super::box_head::{BoxHead, RoiSamples};
use super::common::{BoxFrame, Detections, Loss, Sampling, branch};
use super::config::ModelConfig;
use super::inputs::Inputs;
use super::rpn::{Proposals, Rpn};
use crate::error::Result;
use crate::nn::Builder;
use crate::tape::{Tape, Var};

/// The heads of Faster R-CNN.
pub struct FasterRcnn {
    /// The region proposal network.
    pub rpn: Rpn,
    /// The head that predicts classes and boxes.
    pub box_head: BoxHead,
}

impl FasterRcnn {
    /// Names of the losses, in their order.
    pub const LOSSES: [&str; 4] = ["rpn_cls", "rpn_box", "roi_cls", "roi_box"];

    /// Heads for `classes` classes, with initial weights.
    pub fn new(b: &mut Builder<'_>, cfg: &ModelConfig, classes: usize) -> Result<Self> {
        let c = cfg.fpn.channels;
        Ok(FasterRcnn {
            rpn: Rpn::new(&mut b.sub("rpn_head"), &cfg.rpn, c)?,
            box_head: BoxHead::new(&mut b.sub("roi_head.bbox_head"), &cfg.box_head, c, cfg.roi_strides(), classes)?,
        })
    }

    /// Losses of one training pass. The second stage uses `proposals` instead of the RPN's if they are given.
    pub fn losses(
        &self,
        tape: &mut Tape,
        p: &[Var],
        inputs: &Inputs,
        how: Sampling,
        proposals: Option<Proposals>,
    ) -> Result<Vec<Loss>> {
        Ok(self.train(tape, p, inputs, how, proposals)?.0)
    }

    /// Like [`FasterRcnn::losses`], but also returns the sampled RoIs, which a mask head is trained on.
    pub fn train(
        &self,
        tape: &mut Tape,
        p: &[Var],
        inputs: &Inputs,
        how: Sampling,
        proposals: Option<Proposals>,
    ) -> Result<(Vec<Loss>, RoiSamples)> {
        let (mut losses, proposals) = self.rpn.train(tape, p, inputs, how, proposals)?;
        let (terms, samples) = tape.scope("box_head", |tape| {
            let samples = self.box_head.sample(&proposals.boxes, &proposals.valid, inputs, how)?;
            drop(proposals);
            branch(tape, p, |tape, p| {
                let out = self.box_head.forward(tape, p, &samples.rois, &samples.idx)?;
                Ok((self.box_head.losses(tape, &out, &samples, inputs)?, samples))
            })
        })?;
        losses.extend(terms);
        Ok((losses, samples))
    }

    /// Detections of one evaluation pass. In [`BoxFrame::Original`], boxes are divided by the image's scale before NMS.
    pub fn detect(&self, tape: &mut Tape, p: Vec<Var>, inputs: &Inputs, frame: BoxFrame) -> Result<Detections> {
        let proposals = self.rpn.test(tape, &p, inputs)?;
        tape.scope("box_head", |tape| {
            let out = self.box_head.forward(tape, &p, &proposals.boxes, &proposals.valid)?;
            drop(p);
            self.box_head.detections(&out, &proposals.boxes, &proposals.valid, inputs, frame)
        })
    }
}
