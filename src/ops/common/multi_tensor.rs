//! Lists of tensors as kernels/common/multi_tensor.cuh takes them: few launches for all parameters of a model. Not an op.
//!
//! Main types: [`Entry`], [`MultiTensor`].

use crate::device::gpu::Operand;
use crate::device::gpu::{Grid, dim_u32};
use crate::error::Result;
use crate::tensor::Tensor;

/// Tensors of a launch: its arguments must fit 4096 bytes.
const TENSORS: usize = 64;
/// Tensors that belong together: AdamW has value, gradient and two means.
const LISTS: usize = 4;
/// Elements of a block.
const CHUNK: usize = 8192;
/// Threads of a block.
const THREADS: u32 = 256;

/// Chunks, and so blocks, of a tensor of `n` elements.
pub(crate) fn chunks(n: usize) -> usize {
    n.div_ceil(CHUNK)
}

/// Mirror of the kernels' MultiTensor.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit, bytemuck::Zeroable)]
pub(crate) struct MultiTensor {
    address: [[u64; TENSORS]; LISTS],
    elements: [u64; TENSORS],
    end: [u32; TENSORS],
    decay: [f32; TENSORS],
    tensors: u32,
    first_chunk: u32,
    first_tensor: u32,
    unused: u32,
}

/// Tensors of one size that belong together, in the order of the kernel's lists.
pub(crate) struct Entry {
    address: [u64; LISTS],
    lists: usize,
    elements: usize,
    decay: f32,
}

impl Entry {
    /// None yet, each to have `elements`; `decay` for kernels that have one.
    pub(crate) fn new(elements: usize, decay: f32) -> Entry {
        Entry { address: [0; LISTS], lists: 0, elements, decay }
    }

    /// A tensor that the kernel writes.
    ///
    /// # Panics
    /// If its buffer is shared: then somebody still reads it.
    pub(crate) fn out(self, t: &mut Tensor) -> Entry {
        assert!(t.is_unique(), "multi_tensor: writing to a shared buffer");
        self.arg(t)
    }

    /// A tensor that the kernel reads.
    pub(crate) fn arg(mut self, t: &Tensor) -> Entry {
        assert_eq!(t.numel(), self.elements, "multi_tensor: a tensor of another size");
        self.address[self.lists] = t.address() as u64;
        self.lists += 1;
        self
    }
}

/// Calls `launch` with the entries, as many at a time as one launch takes, and the grid for them. Tensors without elements have no
/// block, but their number.
pub(crate) fn launches(
    entries: impl IntoIterator<Item = Entry>,
    mut launch: impl FnMut(&MultiTensor, Grid) -> Result<()>,
) -> Result<()> {
    let mut list: MultiTensor = bytemuck::Zeroable::zeroed();
    let mut end = 0;
    for e in entries {
        if list.tensors as usize == TENSORS {
            launch(&list, Grid::blocks(end, THREADS))?;
            list.first_chunk = dim_u32("multi_tensor", list.first_chunk as usize + end)?;
            list.first_tensor += list.tensors;
            (list.tensors, end) = (0, 0);
        }
        let i = list.tensors as usize;
        end += chunks(e.elements);
        for (all, address) in list.address.iter_mut().zip(e.address) {
            all[i] = address;
        }
        (list.elements[i], list.end[i], list.decay[i]) = (e.elements as u64, dim_u32("multi_tensor", end)?, e.decay);
        list.tensors += 1;
    }
    launch(&list, Grid::blocks(end, THREADS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_into_launches() {
        let sizes = (0..150).map(|i| if i % 10 == 3 { 0 } else { 1 + 1000 * i });
        let mut seen = Vec::new();
        launches(sizes.clone().map(|n| Entry::new(n, n as f32)), |list, grid| {
            let n = list.tensors as usize;
            assert_eq!(grid.blocks[0], list.end[n - 1], "a block a chunk");
            assert_eq!(list.first_chunk as usize, seen.iter().map(|&n| chunks(n)).sum::<usize>());
            assert_eq!(list.first_tensor as usize, seen.len());
            for i in 0..n {
                let begin = if i == 0 { 0 } else { list.end[i - 1] };
                assert_eq!((list.end[i] - begin) as usize, chunks(list.elements[i] as usize));
                assert_eq!(list.decay[i], list.elements[i] as f32);
                seen.push(list.elements[i] as usize);
            }
            Ok(())
        })
        .unwrap();
        assert!(seen.into_iter().eq(sizes));
        launches([], |_, grid| {
            assert!(grid.is_empty());
            Ok(())
        })
        .unwrap();
    }
}
