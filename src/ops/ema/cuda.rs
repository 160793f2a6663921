//! Launches of kernels/ema.cu.

use crate::error::Result;
use crate::ops::common::multi_tensor::{Entry, launches};
use crate::tensor::{DType, Tensor};

pub(super) fn update(pairs: &mut [(&mut Tensor, &Tensor)], share: &Tensor) -> Result<()> {
    let device = share.device().clone();
    let entries = pairs.iter_mut().map(|(average, value)| Entry::new(value.numel(), 0.0).out(average).arg(value));
    launches(entries, |list, grid| {
        let k = device.gpu().kernel("ema", DType::F32).arg(share).params(list);
        // SAFETY: ema(share, list): lists of average and value, of one size each, share of one element (checked in
        // mod.rs).
        unsafe { k.launch(grid) }
    })
}
