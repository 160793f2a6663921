//! Launches of kernels/concat_rows.cu.

use crate::device::gpu::Grid;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: u32 = 256;
/// Most blocks along y that a grid may have; the kernels loop over images.
const MAX_IMAGES: usize = 65_535;

/// Mirror of the kernels' ConcatRowsParams.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: i64,
    stride: i64,
    at: i64,
    len: i64,
}

fn params(n: usize, stride: usize, at: usize, len: usize) -> Params {
    Params { n: n as i64, stride: stride as i64, at: at as i64, len: len as i64 } // elements of tensors: isize::MAX at most
}

/// One thread a vector of an image, as the kernels choose them.
fn grid(t: &Tensor, stride: usize, at: usize, len: usize) -> Grid {
    let per_vector = 16 / t.dtype().bytes();
    let vector = if (stride | at | len).is_multiple_of(per_vector) { per_vector } else { 1 };
    Grid::stride(len / vector, THREADS).y(t.dim(0).min(MAX_IMAGES))
}

/// Writes each image's `len` elements of `x` at `at` of the image's `stride` elements of `y`.
pub(super) fn put(y: &mut Tensor, x: &Tensor, stride: usize, at: usize, len: usize) -> Result<()> {
    let (device, grid) = (y.device().clone(), grid(x, stride, at, len));
    let params = params(x.dim(0), stride, at, len);
    let k = device.gpu().kernel("concat_rows_fwd", y.dtype()).out(y).arg(x).params(&params);
    // SAFETY: concat_rows_fwd(y, x, params): y [N, stride], x [N, len], at + len within the stride (mod.rs adds the
    // lengths).
    unsafe { k.launch(grid) }
}

/// The reverse: each image's `len` elements at `at` of `dy`, as `dx`.
pub(super) fn take(dx: &mut Tensor, dy: &Tensor, stride: usize, at: usize, len: usize) -> Result<()> {
    let (device, grid) = (dx.device().clone(), grid(dx, stride, at, len));
    let params = params(dx.dim(0), stride, at, len);
    let k = device.gpu().kernel("concat_rows_bwd", dy.dtype()).out(dx).arg(dy).params(&params);
    // SAFETY: concat_rows_bwd(dx, dy, params): dx [N, len], dy [N, stride], at + len within the stride (mod.rs adds the
    // lengths, the tape checks dy).
    unsafe { k.launch(grid) }
}
