//! Mask head (He et al. 2017): RoI features to one small mask for the RoI's class.
//!
//! ```text
//! RoIAlign 14×14 → 4 × conv 3×3 → transposed conv 2×2 (28×28) → the class's logit of each pixel
//! ```

use super::Loss;
use super::box_head::RoiSamples;
use super::config::MaskHeadConfig;
use super::inputs::Inputs;
use crate::error::Result;
use crate::nn::{Builder, Conv2d, Deconv2x2, Init, SelectLinear};
use crate::ops::bce::bce;
use crate::ops::conv2d::Activation;
use crate::ops::gather_rows::{take, take_i32};
use crate::ops::mask_targets::mask_targets;
use crate::ops::roi_align::{RoiAlign, roi_align};
use crate::ops::sample::positives;
use crate::ops::softmax_ce::{AvgFactor, avg_factor};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The head.
pub struct MaskHead {
    convs: Vec<Conv2d>,
    upsample: Deconv2x2,
    logits: SelectLinear,
    cfg: MaskHeadConfig,
    strides_px: Vec<f32>,
    finest_scale_px: f32,
    /// Positives of an image at most.
    quota: usize,
}

/// RoIs whose masks are trained: the positives among the samples.
pub struct MaskRois {
    /// `[B,P,4]`.
    pub rois: Tensor,
    /// Matched ground truth, i32 `[B,P]`; -1 is padding.
    pub gt: Tensor,
    /// Class, i32 `[B,P]`; -1 is padding.
    pub classes: Tensor,
}

impl MaskHead {
    /// On RoI features of `c_in` channels from levels of the given strides; RoIs come from levels by `finest_scale_px`, at
    /// most `quota` positives of an image.
    pub fn new(
        b: &mut Builder<'_>,
        cfg: &MaskHeadConfig,
        c_in: usize,
        strides_px: Vec<f32>,
        finest_scale_px: f32,
        quota: usize,
        classes: usize,
    ) -> Result<Self> {
        let (c, init) = (cfg.channels, Init::KaimingFanOut);
        let mut convs = Vec::new();
        for i in 0..cfg.convs {
            let mut s = b.sub(format!("convs.{i}.conv"));
            convs.push(Conv2d::new(&mut s, if i == 0 { c_in } else { c }, c, 3, 1, true, init)?);
        }
        let c_in = if cfg.convs == 0 { c_in } else { c };
        Ok(MaskHead {
            convs,
            upsample: Deconv2x2::new(&mut b.sub("upsample"), c_in, c)?,
            logits: SelectLinear::new(&mut b.sub("conv_logits"), c, classes, init)?,
            cfg: cfg.clone(),
            strides_px,
            finest_scale_px,
            quota,
        })
    }

    /// Side of the masks.
    pub fn size(&self) -> usize {
        2 * self.cfg.pool
    }

    /// The positives among the samples.
    pub fn rois(&self, samples: &RoiSamples, inputs: &Inputs) -> Result<MaskRois> {
        let columns = positives(&samples.gt, self.quota)?;
        let (rois, gt) = (take(&samples.rois, &columns)?, take_i32(&samples.gt, &columns, -1)?);
        let classes = take_i32(&inputs.gt_labels, &gt, -1)?;
        Ok(MaskRois { rois, gt, classes })
    }

    /// RoIs `[B,P,4]` and their classes i32 `[B,P]` in, of which the first `counts[b]` of each image count (i32 `[B]` or `[B,2]`)
    /// and the others have class -1; the class's mask logits `[B·P,S,S]` out, 0 in rows that do not count.
    pub fn forward(&self, tape: &mut Tape, p: &[Var], rois: &Tensor, classes: &Tensor, counts: &Tensor) -> Result<Var> {
        let cfg = &self.cfg;
        let how = RoiAlign {
            sampling_ratio: cfg.sampling_ratio,
            aligned: cfg.aligned,
            finest_scale_px: self.finest_scale_px,
            ..RoiAlign::new(cfg.pool, cfg.pool)
        };
        let levels: Vec<&Var> = p.iter().take(self.strides_px.len()).collect();
        let mut x = roi_align(tape, &levels, &self.strides_px, rois, classes, how)?;
        for conv in &self.convs {
            x = conv.forward_live(tape, &x, Activation::Relu, counts)?;
        }
        x = self.upsample.forward_live(tape, &x, Activation::Relu, counts)?;
        self.logits.forward(tape, &x, &classes.reshape(&[classes.numel()])?)
    }

    /// The mean cross-entropy over the pixels of all positives.
    pub fn losses(&self, tape: &mut Tape, p: &[Var], samples: &RoiSamples, inputs: &Inputs) -> Result<Vec<Loss>> {
        let MaskRois { rois, gt, classes } = self.rois(samples, inputs)?;
        let logits = self.forward(tape, p, &rois, &classes, &samples.counts)?;
        let target = self.targets(&rois, &gt, inputs)?;
        let avg = avg_factor(&samples.counts, AvgFactor::Positives)?;
        let weight = self.cfg.loss_weight / (self.size() * self.size()) as f32;
        let target = target.reshape(&[target.numel()])?;
        Ok(vec![Loss { name: "mask", value: bce(tape, &logits, &target, &avg, weight)? }])
    }

    /// The matched objects' masks in each RoI, 1 and 0; -1 in padding; i32 `[B,P,S,S]`.
    pub fn targets(&self, rois: &Tensor, gt: &Tensor, inputs: &Inputs) -> Result<Tensor> {
        let masks = inputs.masks.as_ref().expect("mask_head: a stage that trains masks has them in its inputs");
        let width_px = inputs.images.dim(2);
        mask_targets(rois, gt, &masks.runs, &masks.offsets, &inputs.sizes, width_px, self.size())
    }
}
