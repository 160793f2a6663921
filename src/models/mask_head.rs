//! Mask head (He et al. 2017): predicts from RoI features one small mask for the RoI's class.
//!
//! ```text
//! RoIAlign 14×14 → 4 × conv 3×3 → transposed conv 2×2 (28×28) → the class's logit of each pixel
//! ```

use std::ops::Range;

use super::box_head::RoiSamples;
use super::common::{Loss, branch};
use super::config::MaskHeadConfig;
use super::inputs::Inputs;
use crate::error::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Deconv2x2, Init, SelectLinear};
use crate::ops::avg_factor::{AvgFactor, avg_factor};
use crate::ops::bce::bce;
use crate::ops::conv2d::Activation;
use crate::ops::count_rows::count_rows;
use crate::ops::gather_i32::gather_i32;
use crate::ops::gather_rows::gather_rows_of;
use crate::ops::mask_targets::mask_targets;
use crate::ops::positives::positives;
use crate::ops::roi_align::{RoiAlign, roi_align};
use crate::tape::{Tape, Var};
use crate::tensor::elementwise;
use crate::tensor::{DType, Tensor};

/// Number of RoIs whose masks are trained at a time. Two images have as many by default; it is enough to fill a GPU.
const SLICE_ROIS: usize = 256;

/// The mask head.
pub struct MaskHead {
    convs: Vec<Conv2d>,
    upsample: Deconv2x2,
    logits: SelectLinear,
    cfg: MaskHeadConfig,
    strides_px: Vec<f32>,
    finest_scale_px: f32,
    /// Largest number of positives in an image.
    quota: usize,
}

/// The RoIs whose masks are trained: the positives among the samples.
pub struct MaskRois {
    /// `[B,P,4]`.
    pub rois: Tensor,
    /// Matched ground truth, i32 `[B,P]`; -1 is padding.
    pub gt: Tensor,
    /// Class, i32 `[B,P]`; -1 is padding.
    pub classes: Tensor,
}

impl MaskHead {
    /// A head with initial weights, for RoI features of `c_in` channels from levels of the given strides. RoIs are
    /// assigned to levels by `finest_scale_px`; an image has at most `quota` positives.
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
            convs.push(Conv2d::new(&mut s, ConvSpec::new(if i == 0 { c_in } else { c }, c, init).kernel(3))?);
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

    /// Side of the predicted masks.
    pub fn size(&self) -> usize {
        2 * self.cfg.pool
    }

    /// Selects the positives among the given columns of the samples.
    pub fn rois(&self, samples: &RoiSamples, columns: Range<usize>, inputs: &Inputs) -> Result<MaskRois> {
        let columns = positives(&samples.gt, columns)?;
        let (rois, gt) = (gather_rows_of(&samples.rois, &columns)?, gather_i32(&samples.gt, &columns, -1)?);
        let classes = gather_i32(&inputs.gt_labels, &gt, -1)?;
        Ok(MaskRois { rois, gt, classes })
    }

    /// Computes mask logits `[B·P,S,S]`, each for the RoI's class, from `rois` `[B,P,4]` and `classes` i32 `[B,P]`.
    /// Only the first `counts[b]` RoIs of each image are valid (i32 `[B]` or `[B,2]`); the others must have class -1,
    /// and their logits are 0.
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

    /// The mean cross-entropy over the pixels of all positives. If the tape runs each head's backward pass directly
    /// after its forward pass ([`Tape::branches`]), this head does so for slices of about 256 RoIs in turn, because its
    /// maps are the largest of a detector's.
    pub fn losses(&self, tape: &mut Tape, p: &[Var], samples: &RoiSamples, inputs: &Inputs) -> Result<Vec<Loss>> {
        let avg = avg_factor(&samples.counts, AvgFactor::Positives)?;
        let rois = samples.gt.dim(0) * self.quota;
        let slices = if tape.branches() { rois.div_ceil(SLICE_ROIS).clamp(1, self.quota.max(1)) } else { 1 };
        let columns = self.quota.div_ceil(slices);
        let mut losses: Vec<Loss> = Vec::new();
        for slice in 0..slices {
            let columns = slice * columns..((slice + 1) * columns).min(self.quota);
            if slice > 0 && columns.is_empty() {
                break; // the previous slices hold all positives
            }
            let (terms, ()) = branch(tape, p, |tape, p| {
                Ok((vec![Loss { name: "mask", value: self.loss(tape, p, samples, columns, inputs, &avg)? }], ()))
            })?;
            match losses.first_mut() {
                None => losses = terms,
                Some(sum) => {
                    let mut total = Tensor::empty(avg.device(), &[1], DType::F32)?;
                    elementwise::copy(&mut total, sum.value.value())?;
                    elementwise::add_assign(&mut total, terms[0].value.value())?;
                    sum.value = tape.constant(total);
                }
            }
        }
        Ok(losses)
    }

    /// The part of the loss that comes from the given columns of the samples.
    fn loss(
        &self,
        tape: &mut Tape,
        p: &[Var],
        samples: &RoiSamples,
        columns: Range<usize>,
        inputs: &Inputs,
        avg: &Tensor,
    ) -> Result<Var> {
        let MaskRois { rois, gt, classes } = self.rois(samples, columns, inputs)?;
        let counts = count_rows(&gt)?;
        let logits = self.forward(tape, p, &rois, &classes, &counts)?;
        let target = self.targets(&rois, &gt, inputs)?;
        let weight = self.cfg.loss_weight / (self.size() * self.size()) as f32;
        let target = target.reshape(&[target.numel()])?;
        bce(tape, &logits, &target, avg, weight)
    }

    /// The mask of the matched object in each RoI: 1 and 0, and -1 in padding; i32 `[B,P,S,S]`.
    pub fn targets(&self, rois: &Tensor, gt: &Tensor, inputs: &Inputs) -> Result<Tensor> {
        let masks = inputs.masks.as_ref().expect("mask_head: a stage that trains masks has them in its inputs");
        let width_px = inputs.images.dim(2);
        mask_targets(rois, gt, &masks.runs, &masks.offsets, &inputs.sizes, width_px, self.size())
    }
}
