//! Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017).
//!
//! ```text
//! image → ResNet → FPN ┬→ RPN → proposals ┐
//!                      └→ RoIAlign ←──────┴→ box head → classes, boxes
//! ```

use super::box_head::{BoxHead, Detections};
use super::config::ModelConfig;
use super::fpn::Fpn;
use super::inputs::Inputs;
use super::resnet::{BackboneMode, ResNet};
use super::rpn::{Proposals, Rpn, RpnOutput};
use super::{Loss, Sampling};
use crate::error::Result;
use crate::nn::Builder;
use crate::ops::image_normalize::image_normalize;
use crate::tape::{Tape, Var};
use crate::tensor::DType;

/// Subtracted from and divided into the pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelStats {
    /// RGB, 0 to 255.
    pub mean: [f32; 3],
    /// RGB, 0 to 255.
    pub std: [f32; 3],
}

/// The detector.
pub struct FasterRcnn {
    /// Feature extractor.
    pub backbone: ResNet,
    /// Feature pyramid.
    pub neck: Fpn,
    /// Proposals.
    pub rpn: Rpn,
    /// Classes and boxes.
    pub box_head: BoxHead,
    pixels: PixelStats,
}

impl FasterRcnn {
    /// A detector of `classes` classes with initial weights.
    pub fn new(b: &mut Builder<'_>, cfg: &ModelConfig, classes: usize, pixels: PixelStats) -> Result<Self> {
        let levels = 4.min(cfg.rpn.strides.len());
        Ok(FasterRcnn {
            backbone: ResNet::new(&mut b.sub("backbone"), &cfg.backbone)?,
            neck: Fpn::new(&mut b.sub("neck"), &cfg.fpn, &cfg.backbone.out_channels())?,
            rpn: Rpn::new(&mut b.sub("rpn_head"), &cfg.rpn, cfg.fpn.channels)?,
            box_head: BoxHead::new(
                &mut b.sub("roi_head.bbox_head"),
                &cfg.box_head,
                cfg.fpn.channels,
                &cfg.rpn.strides[..levels],
                classes,
            )?,
            pixels,
        })
    }

    /// Normalised image to P2..P6.
    pub fn features(&self, tape: &mut Tape, image: Var, mode: BackboneMode) -> Result<Vec<Var>> {
        let c = tape.scope("backbone", |tape| self.backbone.forward(tape, &image, mode))?;
        drop(image);
        tape.scope("neck", |tape| self.neck.forward(tape, &c))
    }

    /// Losses of one training pass.
    pub fn losses(&self, tape: &mut Tape, inputs: &Inputs, mode: BackboneMode, how: Sampling) -> Result<Vec<Loss>> {
        let image =
            image_normalize(tape, &inputs.images, &inputs.sizes, self.pixels.mean, self.pixels.std, DType::F32)?;
        self.losses_from_image(tape, image, inputs, mode, how)
    }

    /// As [`FasterRcnn::losses`], from an image that is normalised already.
    pub fn losses_from_image(
        &self,
        tape: &mut Tape,
        image: Var,
        inputs: &Inputs,
        mode: BackboneMode,
        how: Sampling,
    ) -> Result<Vec<Loss>> {
        self.losses_from(tape, image, inputs, mode, how, |out| self.rpn.train_proposals(out, inputs))
    }

    /// As [`FasterRcnn::losses_from_image`], with the second stage on proposals from elsewhere: NMS is discontinuous, so
    /// that two implementations can be compared only on the same proposals.
    pub fn losses_with_proposals(
        &self,
        tape: &mut Tape,
        image: Var,
        inputs: &Inputs,
        mode: BackboneMode,
        how: Sampling,
        proposals: Proposals,
    ) -> Result<Vec<Loss>> {
        self.losses_from(tape, image, inputs, mode, how, |_| Ok(proposals))
    }

    fn losses_from(
        &self,
        tape: &mut Tape,
        image: Var,
        inputs: &Inputs,
        mode: BackboneMode,
        how: Sampling,
        proposals: impl FnOnce(&RpnOutput) -> Result<Proposals>,
    ) -> Result<Vec<Loss>> {
        let p = self.features(tape, image, mode)?;
        let (mut losses, proposals) = tape.scope("rpn", |tape| {
            let out = self.rpn.forward(tape, &p)?;
            let losses = self.rpn.losses(tape, &out, inputs, how)?;
            Ok::<_, crate::Error>((losses, proposals(&out)?))
        })?;
        losses.extend(tape.scope("box_head", |tape| {
            let samples = self.box_head.sample(&proposals, inputs, how)?;
            drop(proposals);
            let out = self.box_head.forward(tape, &p, &samples.rois, &samples.idx)?;
            self.box_head.losses(tape, &out, &samples, inputs)
        })?);
        Ok(losses)
    }

    /// Detections of one evaluation pass, in original pixels.
    pub fn detect(&self, tape: &mut Tape, inputs: &Inputs) -> Result<Detections> {
        let image =
            image_normalize(tape, &inputs.images, &inputs.sizes, self.pixels.mean, self.pixels.std, DType::F32)?;
        self.detect_from_image(tape, image, inputs, true)
    }

    /// As [`FasterRcnn::detect`], from an image that is normalised already; in network pixels without `rescale`.
    pub fn detect_from_image(&self, tape: &mut Tape, image: Var, inputs: &Inputs, rescale: bool) -> Result<Detections> {
        let p = self.features(tape, image, BackboneMode::EVALUATION)?;
        let proposals = tape.scope("rpn", |tape| {
            let out = self.rpn.forward(tape, &p)?;
            self.rpn.test_proposals(&out, inputs)
        })?;
        tape.scope("box_head", |tape| {
            let out = self.box_head.forward(tape, &p, &proposals.boxes, &proposals.valid)?;
            drop(p);
            self.box_head.detections(&out, &proposals, inputs, rescale)
        })
    }
}
