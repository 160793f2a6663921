//! From the pixels of a padded batch to the network's input.

mod cpu;
mod cuda;

use super::cast::cast;
use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo =
    OpInfo { name: "image_normalize", gradient: Gradient::No("its input are pixels: nothing before it learns") };

/// `y = (x - mean) * (1 / std)` inside each image, exactly 0 in the padding around it, as floats of type `dtype`.
///
/// Shapes: images `[B,H,W,3]` u8; sizes `[B,4]` f32: image height and width, padded height and width (unused here),
/// pixels; y `[B,H,W,3]` of `dtype`.
/// Saves: nothing.
/// Gradient: none: its input are pixels.
/// Cost: reads 3·B·H·W bytes, writes two or four times as much; memory-bound.
/// Errors: `Shape`, `Dtype`; `Value` if a standard deviation is not positive.
/// Reference: mmcv.imnormalize, on the CPU to the bit: the difference in f32, the product with the reciprocal in f64,
/// rounded once; padding follows it.
pub fn image_normalize(
    tape: &mut Tape,
    images: &Tensor,
    sizes: &Tensor,
    mean: [f32; 3],
    std: [f32; 3],
    dtype: DType,
) -> Result<Var> {
    let device = images.device();
    let _op = device.enter("image_normalize");
    let [b, h, w, _] = images.dims("image_normalize: images")?;
    images.expect_shape("image_normalize: images", &[b, h, w, 3])?;
    images.expect_dtype("image_normalize: images", DType::U8)?;
    sizes.expect_shape("image_normalize: sizes", &[b, 4])?;
    sizes.expect_dtype("image_normalize: sizes", DType::F32)?;
    if std.iter().any(|s| s.is_nan() || *s <= 0.0) {
        return Err(Error::value("image_normalize", format!("standard deviations must be positive, got {std:?}")));
    }
    if dtype != DType::F32 && !device.runs_kernels() {
        let y = image_normalize(tape, images, sizes, mean, std, DType::F32)?;
        return cast(tape, &y, dtype);
    }
    let mut y = Tensor::empty(device, images.shape(), dtype)?;
    y.expect_float("image_normalize: y")?;
    on_device!(
        device,
        cpu => cpu::forward(y.f32s_mut(), images.slice(), sizes.f32s(), [h, w], mean, std),
        cuda => cuda::forward(&mut y, images, sizes, mean, std),
    );
    Ok(tape.constant(y))
}
