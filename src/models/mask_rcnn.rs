//! Mask R-CNN (He et al. 2017): Faster R-CNN with a mask for each of its boxes.
//!
//! ```text
//! P2..P6 ┬→ RPN → proposals ┐
//!        ├→ RoIAlign ←──────┴→ box head → classes, boxes ┐
//!        └→ RoIAlign ←───────────────────────────────────┴→ mask head → masks
//! ```

use super::common::{BoxFrame, Detections, Loss, Sampling};
use super::config::ModelConfig;
use super::faster_rcnn::FasterRcnn;
use super::inputs::Inputs;
use super::mask_head::MaskHead;
use super::rpn::Proposals;
use crate::error::Result;
use crate::nn::Builder;
use crate::ops::count_rows::count_rows;
use crate::tape::{Tape, Var};

/// The heads of Mask R-CNN.
pub struct MaskRcnn {
    /// The heads for proposals, classes and boxes.
    pub faster: FasterRcnn,
    /// The head that predicts masks.
    pub mask_head: MaskHead,
}

impl MaskRcnn {
    /// Names of the losses, in their order.
    pub const LOSSES: [&str; 5] = ["rpn_cls", "rpn_box", "roi_cls", "roi_box", "mask"];

    /// Heads for `classes` classes, with initial weights.
    pub fn new(b: &mut Builder<'_>, cfg: &ModelConfig, classes: usize) -> Result<Self> {
        let faster = FasterRcnn::new(b, cfg, classes)?;
        let mut b = b.sub("roi_head.mask_head");
        let (c, strides, scale) = (cfg.fpn.channels, cfg.roi_strides(), cfg.box_head.finest_scale);
        let quota = (cfg.box_head.samples as f64 * cfg.box_head.pos_fraction) as usize;
        let mask_head = MaskHead::new(&mut b, &cfg.mask_head, c, strides, scale, quota, classes)?;
        Ok(MaskRcnn { faster, mask_head })
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
        let (mut losses, samples) = self.faster.train(tape, p, inputs, how, proposals)?;
        losses.extend(tape.scope("mask_head", |tape| self.mask_head.losses(tape, p, &samples, inputs))?);
        Ok(losses)
    }

    /// Detections of one evaluation pass in network pixels, with the logits of their masks.
    pub fn detect(&self, tape: &mut Tape, p: Vec<Var>, inputs: &Inputs) -> Result<Detections> {
        let FasterRcnn { rpn, box_head } = &self.faster;
        let proposals = rpn.test(tape, &p, inputs)?;
        let found = tape.scope("box_head", |tape| {
            let out = box_head.forward(tape, &p, &proposals.boxes, &proposals.valid)?;
            box_head.detections(&out, &proposals.boxes, &proposals.valid, inputs, BoxFrame::Network)
        })?;
        drop(proposals);
        let masks = tape.scope("mask_head", |tape| {
            let counts = count_rows(&found.classes)?;
            self.mask_head.forward(tape, &p, &found.boxes, &found.classes, &counts)
        })?;
        let ([b, d], s) = (found.classes.dims("mask_rcnn: classes")?, self.mask_head.size());
        Ok(Detections { masks: Some(masks.value().reshape(&[b, d, s, s])?), frame: BoxFrame::Network, ..found })
    }
}
