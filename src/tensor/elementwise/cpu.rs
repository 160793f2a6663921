//! CPU loops, in fixed chunks on rayon threads; a single chunk stays on the caller's. Sums of 16-bit floats are made in f32 and
//! rounded once.

use half::{bf16, f16};
use rayon::prelude::*;

use super::CHUNK;
use crate::tensor::{DType, Element, Tensor};

/// A float of tensors.
trait Float: Element + Copy + Send + Sync {
    fn get(self) -> f32;
    fn of(value: f32) -> Self;
}

impl Float for f32 {
    fn get(self) -> f32 {
        self
    }
    fn of(value: f32) -> Self {
        value
    }
}

impl Float for f16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Float for bf16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

fn each<T: Float>(y: &mut [T], x: &[T], run: impl Fn((&mut [T], &[T])) + Sync + Send) {
    if y.len() <= CHUNK {
        return run((y, x));
    }
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(run);
}

fn each_of<T: Float>(y: &mut [T], run: impl Fn(&mut [T]) + Sync + Send) {
    if y.len() <= CHUNK {
        return run(y);
    }
    y.par_chunks_mut(CHUNK).for_each(run);
}

fn add_slices<T: Float>(y: &mut [T], x: &[T]) {
    each(y, x, |(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y = T::of(y.get() + x.get())));
}

fn scale_slice<T: Float>(y: &mut [T], factor: f32) {
    each_of(y, |y| y.iter_mut().for_each(|y| *y = T::of(y.get() * factor)));
}

/// `$f::<T>` of the tensors' type, which mod.rs has found to be a float.
macro_rules! by_type {
    ($dtype:expr, $t:ident => $run:expr) => {
        match $dtype {
            DType::F16 => {
                type $t = f16;
                $run
            }
            DType::BF16 => {
                type $t = bf16;
                $run
            }
            _ => {
                type $t = f32;
                $run
            }
        }
    };
}

pub(super) fn add_assign(y: &mut Tensor, x: &Tensor) {
    by_type!(x.dtype(), T => add_slices(y.slice_mut::<T>(), x.slice::<T>()));
}

pub(super) fn copy(y: &mut Tensor, x: &Tensor) {
    by_type!(x.dtype(), T => each(y.slice_mut::<T>(), x.slice::<T>(), |(y, x)| y.copy_from_slice(x)));
}

pub(super) fn fill(y: &mut Tensor, value: f32) {
    by_type!(y.dtype(), T => each_of(y.slice_mut::<T>(), |y| y.fill(T::of(value))));
}

pub(super) fn scale(y: &mut Tensor, factor: f32) {
    by_type!(y.dtype(), T => scale_slice(y.slice_mut::<T>(), factor));
}
