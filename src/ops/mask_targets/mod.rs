//! Targets of the mask head: the matched object's mask, cropped by the box and resized, straight from runs.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "mask_targets", gradient: Gradient::No("targets are constants of the mask loss") };

/// `target = 1` where RoIAlign (aligned, one sample a pixel: `ceil(box / size)` a bin) of the object's 0/1 mask is at
/// least 0.5, else 0, over `size`×`size` bins of the box clipped to the padded image; -1 in boxes without an object. As
/// `bce` takes it.
///
/// Shapes: rois `[B,P,4]` f32; gt `[B,P]` i32 (-1 = no object); runs `[B,S]`, offsets `[B,G+1]` i32; sizes `[B,4]` f32;
/// target `[B,P,size,size]` i32. Object g of an image is `runs[offsets[g]..offsets[g+1]]`, ascending positions `y *
/// width_px + x`: pixel p is set if an odd number of them is at most p.
/// Saves: nothing.
/// Gradient: none.
/// Cost: for each row of pixels of a box, one binary search and the spans of that row. An object of h rows has about 2
/// h runs: 300 objects as high as an 800×1333 canvas are less than 2 MB; as bytes of pixels they would be 320 MB.
/// Errors: `Shape`; `Dtype`; `Value` if `width_px` is 0.
/// Reference: mmdetection's `mask_target` and `BitmapMasks.crop_and_resize` (mmcv's `roi_align` in f32), to the bit.
pub fn mask_targets(
    rois: &Tensor,
    gt: &Tensor,
    runs: &Tensor,
    offsets: &Tensor,
    sizes: &Tensor,
    width_px: usize,
    size: usize,
) -> Result<Tensor> {
    let _op = rois.device().enter("mask_targets");
    let [b, p, _] = rois.dims("mask_targets: rois")?;
    let [_, s] = runs.dims("mask_targets: runs")?;
    let [_, ends] = offsets.dims("mask_targets: offsets")?;
    rois.expect_shape("mask_targets: rois", &[b, p, 4])?;
    rois.expect_dtype("mask_targets: rois", DType::F32)?;
    gt.expect_shape("mask_targets: gt", &[b, p])?;
    gt.expect_dtype("mask_targets: gt", DType::I32)?;
    runs.expect_shape("mask_targets: runs", &[b, s])?;
    runs.expect_dtype("mask_targets: runs", DType::I32)?;
    offsets.expect_shape("mask_targets: offsets", &[b, ends.max(1)])?;
    offsets.expect_dtype("mask_targets: offsets", DType::I32)?;
    sizes.expect_shape("mask_targets: sizes", &[b, 4])?;
    sizes.expect_dtype("mask_targets: sizes", DType::F32)?;
    if width_px == 0 && b * p > 0 {
        return Err(Error::value("mask_targets", "width_px is 0: it is the width of the canvas that runs count in"));
    }
    let mut target = Tensor::empty(rois.device(), &[b, p, size, size], DType::I32)?;
    on_device!(
        rois.device(),
        cpu => {
            let masks = cpu::Masks { runs: runs.i32s(), s, offsets: offsets.i32s(), ends, width_px };
            cpu::mask_targets(target.i32s_mut(), rois.f32s(), gt.i32s(), &masks, sizes.f32s(), p, size);
        },
        cuda => cuda::mask_targets(&mut target, rois, gt, runs, offsets, sizes, width_px),
    );
    Ok(target)
}
