//! Tensors: a shape, an element type and a shared, contiguous buffer on a device. Data only; gradients are the tape's.
//!
//! Not for arithmetic (that is `ops`). Main type: [`Tensor`].

pub mod elementwise;
#[cfg(test)]
mod steps;

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;

pub use crate::dtype::{DType, Element};

use crate::device::gpu::{Later, Operand};
use crate::device::{ALIGN_BYTES, Buf, Device};
use crate::error::{Error, Result};

/// A contiguous, row-major array. Cloning shares the buffer; writing needs the only reference to it.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    device: Device,
    buf: Rc<Buf>,
}

/// The product of the dimensions. Err if it is beyond `usize`.
fn checked_numel(what: &str, shape: &[usize]) -> Result<usize> {
    let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    n.ok_or_else(|| too_large(what, shape))
}

/// Bytes of a tensor. Err if they are more than any allocation may have, rounded up to where the next one begins.
fn checked_bytes(what: &str, shape: &[usize], dtype: DType) -> Result<usize> {
    const MOST: usize = isize::MAX as usize + 1 - ALIGN_BYTES;
    let bytes = checked_numel(what, shape)?.checked_mul(dtype.bytes());
    bytes.filter(|&b| b <= MOST).ok_or_else(|| too_large(what, shape))
}

fn too_large(what: &str, shape: &[usize]) -> Error {
    Error::Shape { what: what.into(), want: "a size that fits the address space".into(), got: shape.to_vec() }
}

impl Tensor {
    /// An uninitialised tensor: in a step its memory comes from the planned arena, otherwise from the heap.
    ///
    /// Errors: `Shape` if the size is beyond the address space; `Plan` if the running step was planned with another
    /// allocation at this place; `Device` if there is no memory.
    pub fn empty(device: &Device, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let buf = Rc::new(device.alloc(checked_bytes("empty", shape, dtype)?)?);
        Ok(Tensor { shape: shape.to_vec(), dtype, device: device.clone(), buf })
    }

    /// A tensor of zeros.
    pub fn zeros(device: &Device, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let mut t = Tensor::empty(device, shape, dtype)?;
        t.fill_bytes(0)?;
        Ok(t)
    }

    /// A tensor with the given contents. On the plan device the contents are dropped.
    pub fn from_slice<T: Element>(device: &Device, shape: &[usize], data: &[T]) -> Result<Tensor> {
        if checked_numel("from_slice", shape)? != data.len() {
            return Err(Error::Shape {
                what: "from_slice".into(),
                want: format!("{} elements", data.len()),
                got: shape.to_vec(),
            });
        }
        let mut t = Tensor::empty(device, shape, T::DTYPE)?;
        t.write(data)?;
        Ok(t)
    }

    /// Overwrites the contents from host memory. Nothing happens on the plan device.
    ///
    /// Errors: `Device` or `Kernel` if the copy to a GPU fails.
    ///
    /// # Panics
    /// If the lengths differ or the buffer is shared.
    pub fn write<T: Element>(&mut self, data: &[T]) -> Result<()> {
        assert_eq!(T::DTYPE, self.dtype, "tensor: written as another element type");
        assert_eq!(data.len(), self.numel(), "tensor: written with another number of elements");
        match &self.device {
            Device::Cpu(_) => self.slice_mut::<T>().copy_from_slice(data),
            Device::Cuda(gpu) => {
                assert!(self.is_unique(), "tensor: writing to a shared buffer");
                gpu.upload(self.buf.address(), bytemuck::cast_slice(data))?;
            }
            Device::Plan(_) => {}
        }
        Ok(())
    }

    /// A copy of the contents on the host; a GPU is waited for. Inside a step only what an earlier one left is of use.
    ///
    /// Errors: `Device` or `Kernel` if the copy from a GPU, or work before it, fails.
    ///
    /// # Panics
    /// As [`Tensor::slice`] on the plan device, or for another element type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let Device::Cuda(gpu) = &self.device else { return Ok(self.slice().to_vec()) };
        assert_eq!(T::DTYPE, self.dtype, "tensor: read as another element type");
        let mut data = vec![T::zeroed(); self.numel()];
        gpu.download(bytemuck::cast_slice_mut(&mut data), self.buf.address())?;
        Ok(data)
    }

    /// The contents as they are now, to be had later: on a GPU the copy begins, and nobody waits until it is asked for. For a few
    /// numbers (a step's losses).
    ///
    /// Errors: as [`Tensor::to_vec`], then or when asked for.
    pub fn read_later<T: Element>(&self) -> Result<impl FnOnce() -> Result<Vec<T>> + use<T>> {
        let later: Later = match &self.device {
            Device::Cuda(gpu) => gpu.read_later(self.buf.address(), self.bytes())?,
            _ => {
                let bytes = bytemuck::cast_slice(self.slice::<T>()).to_vec();
                Box::new(move || Ok(bytes))
            }
        };
        Ok(move || later().map(|bytes| bytemuck::pod_collect_to_vec(&bytes)))
    }

    /// The contents on the host: in place on the CPU, else a copy as [`Tensor::to_vec`] makes it.
    pub fn read<T: Element>(&self) -> Result<Cow<'_, [T]>> {
        match &self.device {
            Device::Cuda(_) => self.to_vec().map(Cow::Owned),
            _ => Ok(Cow::Borrowed(self.slice())),
        }
    }

    /// Zeros, written in stream order.
    pub(crate) fn zero(&mut self) -> Result<()> {
        self.fill_bytes(0)
    }

    /// Sets every byte, in stream order.
    pub(crate) fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        let bytes = self.bytes();
        let buf = Rc::get_mut(&mut self.buf).expect("tensor: writing to a shared buffer");
        match &self.device {
            Device::Cpu(_) => buf.bytes_mut().fill(byte),
            Device::Cuda(gpu) => gpu.fill(buf.address(), byte, bytes)?,
            Device::Plan(_) => {}
        }
        Ok(())
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Dimension `i`.
    pub fn dim(&self, i: usize) -> usize {
        self.shape[i]
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Size of the contents.
    pub fn bytes(&self) -> usize {
        self.numel() * self.dtype.bytes()
    }

    /// Where the contents live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// True if no other tensor shares the buffer, so that it may be written in place.
    pub fn is_unique(&self) -> bool {
        Rc::strong_count(&self.buf) == 1
    }

    /// A tensor to be overwritten with a result of this shape: this one if nobody else holds it, else a fresh one, and this one to read
    /// from.
    pub(crate) fn into_output(self) -> Result<(Tensor, Option<Tensor>)> {
        if self.is_unique() {
            return Ok((self, None));
        }
        Ok((Tensor::empty(&self.device, &self.shape, self.dtype)?, Some(self)))
    }

    /// The elements.
    ///
    /// # Panics
    /// If `T` is not the element type or the tensor is not on the CPU: both are checked where the op dispatches.
    pub fn slice<T: Element>(&self) -> &[T] {
        assert_eq!(T::DTYPE, self.dtype, "tensor: read as another element type");
        bytemuck::cast_slice(self.buf.bytes())
    }

    /// The elements, to be written.
    ///
    /// # Panics
    /// As [`Tensor::slice`], and if the buffer is shared.
    pub fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.dtype, "tensor: written as another element type");
        let buf = Rc::get_mut(&mut self.buf).expect("tensor: writing to a shared buffer");
        bytemuck::cast_slice_mut(buf.bytes_mut())
    }

    /// [`Tensor::slice`] of f32.
    pub fn f32s(&self) -> &[f32] {
        self.slice()
    }

    /// [`Tensor::slice_mut`] of f32.
    pub fn f32s_mut(&mut self) -> &mut [f32] {
        self.slice_mut()
    }

    /// [`Tensor::slice`] of i32.
    pub fn i32s(&self) -> &[i32] {
        self.slice()
    }

    /// [`Tensor::slice_mut`] of i32.
    pub fn i32s_mut(&mut self) -> &mut [i32] {
        self.slice_mut()
    }

    /// The same elements under another shape; shares the buffer.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if checked_numel("reshape", shape)? != self.numel() {
            return Err(Error::Shape {
                what: "reshape".into(),
                want: format!("{} elements", self.numel()),
                got: shape.to_vec(),
            });
        }
        let mut t = self.clone();
        t.shape = shape.to_vec();
        Ok(t)
    }

    /// Splits one zeroed buffer into tensors of the given shapes, each writable on its own: parameters' gradients live so.
    pub fn flat(device: &Device, shapes: &[Vec<usize>], dtype: DType) -> Result<Vec<Tensor>> {
        let sizes = shapes.iter().map(|s| checked_bytes("flat", s, dtype)).collect::<Result<Vec<usize>>>()?;
        let total = sizes.iter().try_fold(0usize, |sum, b| sum.checked_add(b.next_multiple_of(ALIGN_BYTES)));
        let bufs = device.alloc_split(checked_bytes("flat", &[total.unwrap_or(usize::MAX)], DType::U8)?, &sizes)?;
        let mut out = Vec::with_capacity(shapes.len());
        for (shape, buf) in shapes.iter().zip(bufs) {
            let mut t = Tensor { shape: shape.clone(), dtype, device: device.clone(), buf: Rc::new(buf) };
            t.fill_bytes(0)?;
            out.push(t);
        }
        Ok(out)
    }

    /// Err if the shape is not `want`.
    pub fn expect_shape(&self, what: &str, want: &[usize]) -> Result<()> {
        if self.shape == want {
            return Ok(());
        }
        Err(Error::Shape { what: what.into(), want: format!("{want:?}"), got: self.shape.clone() })
    }

    /// The dimensions as an array. Err if there are not `R` of them.
    pub fn dims<const R: usize>(&self, what: &str) -> Result<[usize; R]> {
        <[usize; R]>::try_from(self.shape.as_slice()).map_err(|_| Error::Shape {
            what: what.into(),
            want: format!("{R} dimensions"),
            got: self.shape.clone(),
        })
    }

    /// Err if the element type is none that activations have.
    pub fn expect_float(&self, what: &str) -> Result<()> {
        if self.dtype.is_float() {
            return Ok(());
        }
        Err(Error::Dtype { what: what.into(), want: "f32, f16 or bf16".into(), got: self.dtype.name().into() })
    }

    /// Err if the element type is not `want`.
    pub fn expect_dtype(&self, what: &str, want: DType) -> Result<()> {
        if self.dtype == want {
            return Ok(());
        }
        Err(Error::Dtype { what: what.into(), want: want.name().into(), got: self.dtype.name().into() })
    }
}

/// A tensor is an argument of kernels and library calls.
impl Operand for Tensor {
    fn address(&self) -> usize {
        self.buf.address().as_ptr() as usize
    }
    fn numel(&self) -> usize {
        self.numel()
    }
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn is_unique(&self) -> bool {
        self.is_unique()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshape_shares_the_buffer() {
        let dev = Device::cpu();
        let t = Tensor::from_slice(&dev, &[3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let r = t.reshape(&[6]).unwrap();
        assert_eq!(r.f32s(), t.f32s());
        assert!(!t.is_unique());
        assert!(t.reshape(&[5]).is_err());
    }

    #[test]
    fn sizes_that_wrap_are_errors() {
        const HALF: usize = usize::MAX / 2 + 1;
        for dev in [Device::cpu(), Device::plan()] {
            // 2 * HALF is 0 modulo 2^64, and so are four bytes for each of HALF elements.
            for shape in [&[HALF, 2][..], &[HALF], &[isize::MAX as usize / 4 + 1]] {
                let error = Tensor::empty(&dev, shape, DType::F32).unwrap_err();
                assert!(matches!(error, Error::Shape { .. }), "{error}");
            }
            let none = Tensor::zeros(&dev, &[0], DType::F32).unwrap();
            assert!(matches!(none.reshape(&[HALF, 2]).unwrap_err(), Error::Shape { .. }));
            assert!(none.reshape(&[0, HALF, 2]).is_ok());
            assert!(matches!(Tensor::from_slice::<f32>(&dev, &[HALF, 2], &[]).unwrap_err(), Error::Shape { .. }));
            let error = Tensor::flat(&dev, &vec![vec![HALF / 8]; 8], DType::F32).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }

    #[test]
    fn flat_tensors_are_disjoint_and_zero() {
        let dev = Device::cpu();
        let mut ts = Tensor::flat(&dev, &[vec![3], vec![0], vec![2, 2]], DType::F32).unwrap();
        ts[0].f32s_mut().fill(1.0);
        assert!(ts[1].f32s().is_empty());
        assert_eq!(ts[2].f32s(), &[0.0; 4]);
    }

    #[test]
    #[should_panic(expected = "shared buffer")]
    fn a_shared_buffer_cannot_be_written() {
        let mut t = Tensor::zeros(&Device::cpu(), &[2], DType::F32).unwrap();
        let _other = t.clone();
        t.f32s_mut()[0] = 1.0;
    }
}
