//! The inputs of a forward pass: tensors at fixed addresses that the host fills before each pass.

use crate::detection::anchors::Anchors;
use crate::device::Device;
use crate::error::Result;
use crate::ops::anchors_valid::anchors_valid;
use crate::ops::match_boxes::{Matcher, match_boxes};
use crate::philox;
use crate::tensor::DType;
use crate::tensor::Tensor;

/// The inputs of one shape bucket: B images of H×W pixels, with at most G ground-truth boxes each.
pub struct Inputs {
    /// Pixels, RGB `[B,H,W,3]` u8.
    pub images: Tensor,
    /// `(img_h, img_w, pad_h, pad_w)` of each image, `[B,4]` f32.
    pub sizes: Tensor,
    /// Network pixels per original pixel, `(w, h)`, `[B,2]` f32.
    pub scale: Tensor,
    /// Ground-truth boxes `[B,G,4]` f32.
    pub gt_boxes: Tensor,
    /// Classes `[B,G]` i32, -1 after an image's last box.
    pub gt_labels: Tensor,
    /// Number of boxes in each image, `[B]` i32.
    pub gt_count: Tensor,
    /// Masks of the ground truth, if masks are trained.
    pub masks: Option<MaskInputs>,
    /// Key of the pass's random numbers, i32 `[6]`: seed (low, high), stage, step (low, high), first image.
    pub key: Tensor,
    /// Anchors of this shape.
    pub anchors: Anchors,
}

/// Run-length encoded masks of the ground truth. The runs of object g of an image are `runs[offsets[g]..offsets[g+1]]`,
/// ascending positions `y * W + x` on the canvas of the batch where the mask toggles: a pixel belongs to the object if
/// the number of entries that are at most its own position is odd.
pub struct MaskInputs {
    /// i32 `[B,S]`.
    pub runs: Tensor,
    /// i32 `[B,G+1]`.
    pub offsets: Tensor,
}

/// Host data for [`Inputs::load`], in the same layouts.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostBatch<'a> {
    /// See [`Inputs::images`].
    pub images: &'a [u8],
    /// See [`Inputs::sizes`].
    pub sizes: &'a [[f32; 4]],
    /// See [`Inputs::scale`].
    pub scale: &'a [[f32; 2]],
    /// See [`Inputs::gt_boxes`].
    pub gt_boxes: &'a [f32],
    /// See [`Inputs::gt_labels`].
    pub gt_labels: &'a [i32],
    /// See [`Inputs::gt_count`].
    pub gt_count: &'a [i32],
    /// See [`MaskInputs::runs`]; ignored if no masks are trained.
    pub mask_runs: &'a [i32],
    /// See [`MaskInputs::offsets`].
    pub mask_offsets: &'a [i32],
}

impl Inputs {
    /// Zeroed inputs for `b` images of `h`×`w` with room for `g` boxes each, and for `mask_runs` mask runs each. If
    /// `mask_runs` is 0, there are no mask inputs.
    pub fn new(
        device: &Device,
        b: usize,
        h: usize,
        w: usize,
        g: usize,
        mask_runs: usize,
        anchors: Anchors,
    ) -> Result<Inputs> {
        let masks = || -> Result<MaskInputs> {
            let runs = Tensor::zeros(device, &[b, mask_runs], DType::I32)?;
            Ok(MaskInputs { runs, offsets: Tensor::zeros(device, &[b, g + 1], DType::I32)? })
        };
        Ok(Inputs {
            images: Tensor::zeros(device, &[b, h, w, 3], DType::U8)?,
            sizes: Tensor::zeros(device, &[b, 4], DType::F32)?,
            scale: Tensor::zeros(device, &[b, 2], DType::F32)?,
            gt_boxes: Tensor::zeros(device, &[b, g, 4], DType::F32)?,
            gt_labels: Tensor::zeros(device, &[b, g], DType::I32)?,
            gt_count: Tensor::zeros(device, &[b], DType::I32)?,
            masks: (mask_runs > 0).then(masks).transpose()?,
            key: Tensor::zeros(device, &[6], DType::I32)?,
            anchors,
        })
    }

    /// Number of images in a pass.
    pub fn batch(&self) -> usize {
        self.images.dim(0)
    }

    /// Matches the anchors to the ground truth, except anchors in the padding or more than `allowed_border` pixels
    /// beyond the image. Returns i32 `[B,N]` as [`match_boxes`] does.
    pub fn match_anchors(&self, matcher: Matcher, allowed_border: f32) -> Result<Tensor> {
        let valid = anchors_valid(self.anchors.grid(), &self.sizes, allowed_border)?;
        match_boxes(&self.anchors.boxes, Some(&valid), &self.gt_boxes, &self.gt_count, matcher)
    }

    /// Copies host data into the tensors.
    pub fn load(&mut self, batch: &HostBatch<'_>) -> Result<()> {
        self.images.write(batch.images)?;
        self.sizes.write(batch.sizes.as_flattened())?;
        self.scale.write(batch.scale.as_flattened())?;
        self.gt_boxes.write(batch.gt_boxes)?;
        self.gt_labels.write(batch.gt_labels)?;
        if let Some(masks) = &mut self.masks {
            masks.runs.write(batch.mask_runs)?;
            masks.offsets.write(batch.mask_offsets)?;
        }
        self.gt_count.write(batch.gt_count)
    }

    /// Sets the key of the pass's random numbers.
    pub fn set_key(&mut self, seed: u64, stage: u8, step: u64, first_image: u32) -> Result<()> {
        self.key.write(&philox::key(seed, stage, step, first_image))
    }
}
