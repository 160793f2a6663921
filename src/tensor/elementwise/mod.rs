//! Elementwise helpers of the tape, the optimizer and evaluation: add in place, copy, fill, scale, mean. Not ops of a model: they
//! have no gradient.

mod cpu;
pub(crate) mod cuda;

use crate::error::{Error, Result};
use crate::on_device;
use crate::tensor::{DType, Tensor};

/// Elements of one parallel task of a pointwise loop: 64 KiB of f32.
pub(crate) const CHUNK: usize = 16 * 1024;

/// `y += x`, floats of one type, same shape.
pub fn add_assign(y: &mut Tensor, x: &Tensor) -> Result<()> {
    x.expect_shape("add_assign", y.shape())?;
    x.expect_float("add_assign")?;
    y.expect_dtype("add_assign", x.dtype())?;
    on_device!(x.device(), cpu => cpu::add_assign(y, x), cuda => cuda::add_assign(y, x));
    Ok(())
}

/// `y = x`, floats of one type, same shape.
pub fn copy(y: &mut Tensor, x: &Tensor) -> Result<()> {
    x.expect_shape("copy", y.shape())?;
    x.expect_float("copy")?;
    y.expect_dtype("copy", x.dtype())?;
    on_device!(x.device(), cpu => cpu::copy(y, x), cuda => cuda::copy(y, x));
    Ok(())
}

/// `y = value`, a float.
pub fn fill(y: &mut Tensor, value: f32) -> Result<()> {
    y.expect_float("fill")?;
    on_device!(y.device().clone(), cpu => cpu::fill(y, value), cuda => cuda::fill(y, value));
    Ok(())
}

/// `y = x`, i32, same shape.
pub fn copy_i32(y: &mut Tensor, x: &Tensor) -> Result<()> {
    x.expect_shape("copy_i32", y.shape())?;
    x.expect_dtype("copy_i32", DType::I32)?;
    on_device!(x.device(), cpu => y.i32s_mut().copy_from_slice(x.i32s()), cuda => cuda::copy(y, x));
    Ok(())
}

/// `y *= factor`, a float.
pub fn scale(y: &mut Tensor, factor: f32) -> Result<()> {
    y.expect_float("scale")?;
    on_device!(y.device().clone(), cpu => cpu::scale(y, factor), cuda => cuda::scale(y, factor));
    Ok(())
}

/// The mean of tensors of one shape and type, added in their order.
///
/// Errors: `Value` if there are none; `Shape`, `Dtype` if they differ.
pub fn mean(x: &[&Tensor]) -> Result<Tensor> {
    let [first, rest @ ..] = x else { return Err(Error::value("mean", "of no tensors")) };
    let mut y = Tensor::empty(first.device(), first.shape(), first.dtype())?;
    copy(&mut y, first)?;
    for x in rest {
        add_assign(&mut y, x)?;
    }
    scale(&mut y, 1.0 / x.len() as f32)?;
    Ok(y)
}
