//! The gradient of a ReLU that is part of another op.

use rayon::prelude::*;

use super::live::Live;
use crate::error::Result;
use crate::on_device;
use crate::tensor::{Tensor, elementwise};

/// 0 where `y <= 0`, else `dy`; in place if nobody else holds `dy`. Without `y` there was no ReLU. The CPU leaves images that do
/// not count as they are.
pub(in crate::ops) fn relu_gradient(dy: Tensor, y: Option<Tensor>, live: &Live) -> Result<Tensor> {
    let Some(y) = y else { return Ok(dy) };
    let (mut dy, shared) = dy.into_output()?;
    if let Some(shared) = shared {
        elementwise::copy(&mut dy, &shared)?;
    }
    on_device!(
        y.device(),
        cpu => for images in live.ranges() {
            relu_mask(live.part_mut(dy.f32s_mut(), &images), live.part(y.f32s(), &images));
        },
        cuda => elementwise::cuda::relu_mask(&mut dy, &y),
    );
    Ok(dy)
}

/// `dy = 0` where `y <= 0`: the gradient of the fused ReLU, before the other gradients.
pub fn relu_mask(dy: &mut [f32], y: &[f32]) {
    assert_eq!(dy.len(), y.len());
    dy.par_chunks_mut(1 << 14).zip(y.par_chunks(1 << 14)).for_each(|(dy, y)| {
        // `y <= 0` stops the gradient; a NaN in y does not, so that it is seen behind the ReLU too.
        dy.iter_mut().zip(y).for_each(|(d, &y)| *d = if y <= 0.0 { 0.0 } else { *d });
    });
}
