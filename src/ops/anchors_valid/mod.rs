//! Flags the anchors of each image that may be used.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "anchors_valid", gradient: Gradient::No("flags have no gradient") };

/// One level of the pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnchorLevel {
    /// Rows of cells.
    pub h: usize,
    /// Columns of cells.
    pub w: usize,
    /// Distance of cells.
    pub stride_px: usize,
}

/// Anchors of a pyramid, level after level, each in row, column, anchor order.
#[derive(Clone, Copy)]
pub struct AnchorGrid<'a> {
    /// `[N,4]` f32.
    pub boxes: &'a Tensor,
    /// The levels.
    pub levels: &'a [AnchorLevel],
    /// Anchors of a cell.
    pub per_cell: usize,
}

/// Flags the anchors of each image that may be used. The anchor's cell must lie inside the image's own padded size
/// (`sizes` is img_h, img_w, pad_h, pad_w). If `allowed_border >= 0`, its box must also not extend beyond the image by
/// more than that on the left and top, and by less than that on the right and bottom.
///
/// Shapes: sizes `[B,4]` f32; result `[B,N]` u8.
/// Saves: nothing.
/// Gradient: none.
/// Cost: reads N boxes for each image, writes B·N.
/// Errors: `Shape` if sizes is not `[B,4]`.
/// Reference: mmdetection's `anchor_inside_flags` and `AnchorGenerator.valid_flags`.
pub fn anchors_valid(anchors: AnchorGrid<'_>, sizes: &Tensor, allowed_border: f32) -> Result<Tensor> {
    let device = sizes.device();
    let _op = device.enter("anchors_valid");
    let [b, four] = sizes.dims("anchors_valid: sizes")?;
    if four != 4 {
        return Err(Error::Shape {
            what: "anchors_valid: sizes".into(),
            want: "[B,4]".into(),
            got: sizes.shape().to_vec(),
        });
    }
    sizes.expect_dtype("anchors_valid: sizes", DType::F32)?;
    let n = anchors.boxes.dim(0);
    let mut out = Tensor::empty(device, &[b, n], DType::U8)?;
    on_device!(
        device,
        cpu => cpu::forward(out.slice_mut(), anchors, sizes.f32s(), n, allowed_border),
        cuda => cuda::forward(&mut out, anchors, sizes, allowed_border),
    );
    Ok(out)
}
