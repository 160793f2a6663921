//! A whole detector: backbone, feature pyramid, heads.
//!
//! ```text
//! image → backbone → C2..C5 → FPN → P2..P6 (RetinaNet: P3..P7) → heads → losses or detections
//! ```

use super::backbone::Backbone;
use super::cascade_rcnn::CascadeRcnn;
use super::common::{BoxFrame, Detections, Loss, Sampling};
use super::config::{Detector, ModelConfig};
use super::faster_rcnn::FasterRcnn;
use super::fpn::Fpn;
use super::inputs::Inputs;
use super::mask_rcnn::MaskRcnn;
use super::mode::BackboneMode;
use super::retinanet::RetinaNet;
use super::rpn::{Proposals, Rpn};
use crate::error::Result;
use crate::nn::Builder;
use crate::ops::image_normalize::image_normalize;
use crate::tape::{Tape, Var};
use crate::tensor::DType;

/// Mean and standard deviation that pixels are normalised with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelStats {
    /// RGB, 0 to 255.
    pub mean: [f32; 3],
    /// RGB, 0 to 255.
    pub std: [f32; 3],
}

/// A detector of any family on any backbone.
pub struct Model {
    /// Feature extractor.
    pub backbone: Backbone,
    /// Feature pyramid.
    pub neck: Fpn,
    /// The heads, whose input is the pyramid.
    pub heads: Heads,
    pixels: PixelStats,
}

/// The heads of one family.
pub enum Heads {
    /// Ren et al. 2015.
    Faster(FasterRcnn),
    /// Cai and Vasconcelos 2018.
    Cascade(CascadeRcnn),
    /// He et al. 2017.
    Mask(MaskRcnn),
    /// Lin et al. 2017.
    Retina(RetinaNet),
}

impl Model {
    /// A detector of `classes` classes with initial weights.
    pub fn new(b: &mut Builder<'_>, cfg: &ModelConfig, classes: usize, pixels: PixelStats) -> Result<Self> {
        Ok(Model {
            backbone: Backbone::new(&mut b.sub("backbone"), &cfg.backbone, cfg.fpn.start - 2)?,
            neck: Fpn::new(&mut b.sub("neck"), &cfg.fpn, &cfg.backbone.out_channels())?,
            heads: Heads::new(b, cfg, classes)?,
            pixels,
        })
    }

    /// Computes the levels of the pyramid from a normalised image. In training, the key of `inputs` seeds the drop path
    /// of the backbone.
    pub fn features(
        &self,
        tape: &mut Tape,
        image: Var,
        mode: BackboneMode,
        inputs: Option<&Inputs>,
    ) -> Result<Vec<Var>> {
        let key = inputs.map(|i| &i.key);
        let c = tape.scope("backbone", |tape| self.backbone.forward(tape, &image, mode, key))?;
        drop(image);
        tape.scope("neck", |tape| self.neck.forward(tape, &c))
    }

    fn normalized(&self, tape: &mut Tape, inputs: &Inputs, dtype: DType) -> Result<Var> {
        image_normalize(tape, &inputs.images, &inputs.sizes, self.pixels.mean, self.pixels.std, dtype)
    }

    /// Losses of one training pass, named and ordered as in [`Heads::loss_names`]. Activations are stored as
    /// [`BackboneMode::dtype`].
    pub fn losses(&self, tape: &mut Tape, inputs: &Inputs, mode: BackboneMode, how: Sampling) -> Result<Vec<Loss>> {
        let image = self.normalized(tape, inputs, mode.dtype)?;
        self.losses_from_image(tape, image, inputs, mode, how, None)
    }

    /// Like [`Model::losses`], but from an image that is already normalised, and with the given `proposals`, if any, in
    /// the second stage. NMS is discontinuous, so two implementations can be compared only on the same proposals.
    pub fn losses_from_image(
        &self,
        tape: &mut Tape,
        image: Var,
        inputs: &Inputs,
        mode: BackboneMode,
        how: Sampling,
        proposals: Option<Proposals>,
    ) -> Result<Vec<Loss>> {
        let p = self.features(tape, image, mode, Some(inputs))?;
        self.heads.losses(tape, p, inputs, how, proposals)
    }

    /// Detections of one evaluation pass, in the pixels that [`Detections::frame`] names.
    pub fn detect(&self, tape: &mut Tape, inputs: &Inputs) -> Result<Detections> {
        let image = self.normalized(tape, inputs, BackboneMode::EVALUATION.dtype)?;
        self.detect_from_image(tape, image, inputs, BoxFrame::Original)
    }

    /// Like [`Model::detect`], but from an image that is already normalised, and with boxes in `frame`. Boxes of Mask
    /// R-CNN are always in network pixels, because mmdetection divides them by the scale only after NMS: see
    /// [`Detections::frame`].
    pub fn detect_from_image(
        &self,
        tape: &mut Tape,
        image: Var,
        inputs: &Inputs,
        frame: BoxFrame,
    ) -> Result<Detections> {
        let p = self.features(tape, image, BackboneMode::EVALUATION, None)?;
        self.heads.detect(tape, p, inputs, frame)
    }
}

impl Heads {
    fn new(b: &mut Builder<'_>, cfg: &ModelConfig, classes: usize) -> Result<Heads> {
        Ok(match cfg.detector {
            Detector::FasterRcnn => Heads::Faster(FasterRcnn::new(b, cfg, classes)?),
            Detector::CascadeRcnn => Heads::Cascade(CascadeRcnn::new(b, cfg, classes)?),
            Detector::MaskRcnn => Heads::Mask(MaskRcnn::new(b, cfg, classes)?),
            Detector::RetinaNet => Heads::Retina(RetinaNet::new(b, cfg, classes)?),
        })
    }

    /// Names of the losses, in the order of [`Model::losses`].
    pub fn loss_names(&self) -> &'static [&'static str] {
        match self {
            Heads::Faster(_) => &FasterRcnn::LOSSES,
            Heads::Cascade(_) => &CascadeRcnn::LOSSES,
            Heads::Mask(_) => &MaskRcnn::LOSSES,
            Heads::Retina(_) => &RetinaNet::LOSSES,
        }
    }

    /// The region proposal network, if the detector has one.
    pub fn rpn(&self) -> Option<&Rpn> {
        match self {
            Heads::Faster(heads) => Some(&heads.rpn),
            Heads::Cascade(heads) => Some(&heads.rpn),
            Heads::Mask(heads) => Some(&heads.faster.rpn),
            Heads::Retina(_) => None,
        }
    }

    fn losses(
        &self,
        tape: &mut Tape,
        p: Vec<Var>,
        inputs: &Inputs,
        how: Sampling,
        proposals: Option<Proposals>,
    ) -> Result<Vec<Loss>> {
        match self {
            Heads::Faster(heads) => heads.losses(tape, &p, inputs, how, proposals),
            Heads::Cascade(heads) => heads.losses(tape, &p, inputs, how, proposals),
            Heads::Mask(heads) => heads.losses(tape, &p, inputs, how, proposals),
            Heads::Retina(head) => head.losses(tape, p, inputs),
        }
    }

    fn detect(&self, tape: &mut Tape, p: Vec<Var>, inputs: &Inputs, frame: BoxFrame) -> Result<Detections> {
        match self {
            Heads::Faster(heads) => heads.detect(tape, p, inputs, frame),
            Heads::Cascade(heads) => heads.detect(tape, p, inputs, frame),
            Heads::Mask(heads) => heads.detect(tape, p, inputs),
            Heads::Retina(head) => head.detect(tape, p, inputs, frame),
        }
    }
}
