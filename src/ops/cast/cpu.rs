//! CPU loops of the casts, in fixed chunks.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::tensor::elementwise::CHUNK;
use crate::tensor::{DType, Element, Tensor};

pub(super) fn convert(y: &mut Tensor, x: &Tensor) {
    match (x.dtype(), y.dtype()) {
        (DType::F32, DType::F16) => each(y, x, |y: &mut [f16], x| y.convert_from_f32_slice(x)),
        (DType::F32, DType::BF16) => each(y, x, |y: &mut [bf16], x| y.convert_from_f32_slice(x)),
        (DType::F16, DType::F32) => each(y, x, |y, x: &[f16]| x.convert_to_f32_slice(y)),
        (DType::BF16, DType::F32) => each(y, x, |y, x: &[bf16]| x.convert_to_f32_slice(y)),
        (from, to) => unreachable!("cast: {from:?} to {to:?} was refused in mod.rs"),
    }
}

fn each<Y: Element + Send, X: Element + Sync>(y: &mut Tensor, x: &Tensor, run: impl Fn(&mut [Y], &[X]) + Sync) {
    y.slice_mut::<Y>().par_chunks_mut(CHUNK).zip(x.slice::<X>().par_chunks(CHUNK)).for_each(|(y, x)| run(y, x));
}
