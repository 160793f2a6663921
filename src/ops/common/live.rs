//! Which images of a batch count: padded batches (RoIs of a mask head) have those that do in front, and the CPU skips the others.
//! A GPU computes all. Not an op.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The images that count: all `n`, or of each group (an image's RoIs) the first.
#[derive(Clone)]
pub(in crate::ops) struct Live {
    counts: Option<Tensor>,
    n: usize,
}

impl Live {
    /// All of `n` images.
    pub(in crate::ops) fn all(n: usize) -> Live {
        Live { counts: None, n }
    }

    /// Of `n` images in `B` groups, the first `counts[b]` of each, with counts i32 `[B]` or in the first column of `[B,·]`; all
    /// without counts, and where kernels run. `what` names them in errors.
    pub(in crate::ops) fn new(what: &str, counts: Option<&Tensor>, n: usize) -> Result<Live> {
        if let Some(t) = counts {
            t.expect_dtype(what, DType::I32)?;
            let groups = t.shape().first().copied().unwrap_or(0);
            let even = if groups == 0 { n == 0 } else { n.is_multiple_of(groups) && t.numel() > 0 };
            if !even || t.shape().len() > 2 {
                let want = format!("[B] or [B,2], B a divisor of the {n} images");
                return Err(Error::Shape { what: what.into(), want, got: t.shape().to_vec() });
            }
        }
        Ok(Live { counts: counts.filter(|t| !t.device().runs_kernels()).cloned(), n })
    }

    /// Bytes that a rule keeps alive with it.
    pub(in crate::ops) fn bytes(&self) -> usize {
        self.counts.as_ref().map_or(0, Tensor::bytes)
    }

    fn groups(&self) -> usize {
        self.counts.as_ref().map_or(1, |t| t.dim(0))
    }

    /// The largest workspace that a group takes, if one of `n` images takes `of(n)`: not always the one with most images, since
    /// algorithms follow from the shape.
    pub(in crate::ops) fn workspace(&self, of: impl Fn(usize) -> usize) -> usize {
        let most = self.n / self.groups().max(1);
        let least = if self.counts.is_some() { 0 } else { most };
        (least..=most).map(of).max().unwrap_or(0)
    }

    /// The images that count, by group; on the CPU. At least one range, so that a sum over all is written.
    pub(in crate::ops) fn ranges(&self) -> Vec<Range<usize>> {
        let whole = || std::iter::once(0..self.n).collect();
        let Some(counts) = self.counts.as_ref().filter(|_| self.n > 0) else { return whole() };
        let (groups, columns) = (counts.dim(0), counts.numel() / counts.dim(0));
        let each = self.n / groups;
        let count = |b: usize| usize::try_from(counts.i32s()[b * columns]).unwrap_or(0).min(each);
        (0..groups).map(|b| b * each..b * each + count(b)).collect()
    }

    fn elements(&self, len: usize, images: &Range<usize>) -> Range<usize> {
        let each = len.checked_div(self.n).unwrap_or(0);
        images.start * each..images.end * each
    }

    /// These images of `x`.
    pub(in crate::ops) fn part<'a>(&self, x: &'a [f32], images: &Range<usize>) -> &'a [f32] {
        &x[self.elements(x.len(), images)]
    }

    /// These images of `x`, to be written.
    pub(in crate::ops) fn part_mut<'a>(&self, x: &'a mut [f32], images: &Range<usize>) -> &'a mut [f32] {
        let elements = self.elements(x.len(), images);
        &mut x[elements]
    }

    /// Zeros where the images do not count.
    pub(in crate::ops) fn clear_others(&self, x: &mut [f32]) {
        use rayon::prelude::*;
        let ranges = self.ranges();
        let ends = ranges.iter().skip(1).map(|r| r.start).chain([self.n]);
        for (r, end) in ranges.iter().zip(ends) {
            self.part_mut(x, &(r.end..end)).par_chunks_mut(1 << 16).for_each(|x| x.fill(0.0));
        }
    }
}
