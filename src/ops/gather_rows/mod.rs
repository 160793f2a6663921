//! Rows of a tensor by index: the sampled anchors out of all, the kept boxes out of the candidates.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "gather_rows", gradient: Gradient::Yes };

/// Sizes of one gather: `b` images, `s` of `n` rows each, `c` wide; `shared` if one `[N,C]` serves all images.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatherShape {
    b: usize,
    n: usize,
    s: usize,
    c: usize,
    shared: bool,
}

/// `y[b,s] = x[b, idx[b,s]]`; an index outside `0..N` (-1 = none) gives a row of zeros.
///
/// Shapes: x `[B,N,C]` f32; idx `[B,S]` i32; y `[B,S,C]` f32.
/// Saves: idx.
/// Gradient: x: `dx[b, idx[b,s]] += dy[b,s]` into zeros, in the order of `s`; duplicates add.
/// Cost: reads and writes B·S·C; backward writes B·N·C zeros, memory-bound; on a GPU it compares B·S² indices.
/// Errors: `Shape` if idx is not `[B,S]`.
/// Reference: none (indexing).
pub fn gather_rows(tape: &mut Tape, x: &Var, idx: &Tensor) -> Result<Var> {
    let _op = x.device().enter("gather_rows");
    x.value().dims::<3>("gather_rows: x")?;
    let (y, s) = gather(x.value(), idx)?;
    Ok(tape.record([x], y, GatherRowsBwd { idx: idx.clone(), s }))
}

/// [`gather_rows`] of data that carries no gradient.
///
/// Shapes: x `[B,N,C]`, or `[N,C]` shared by all images, f32; idx `[B,S]` i32; y `[B,S,C]` f32.
/// Errors: `Shape` if idx is not `[B,S]`.
pub fn gather_rows_of(x: &Tensor, idx: &Tensor) -> Result<Tensor> {
    let _op = x.device().enter("gather_rows");
    Ok(gather(x, idx)?.0)
}

fn gather(x: &Tensor, idx: &Tensor) -> Result<(Tensor, GatherShape)> {
    let (images, n, c) = match *x.shape() {
        [b, n, c] => (Some(b), n, c),
        [n, c] => (None, n, c),
        ref got => {
            let (what, want) = ("gather_rows: x".into(), "[B,N,C] or [N,C]".into());
            return Err(Error::Shape { what, want, got: got.to_vec() });
        }
    };
    x.expect_dtype("gather_rows: x", DType::F32)?;
    let b = images.unwrap_or(idx.shape().first().copied().unwrap_or(0));
    let s = GatherShape { b, n, s: rows_of("gather_rows", idx, b)?, c, shared: images.is_none() };
    let mut y = Tensor::empty(x.device(), &[s.b, s.s, s.c], DType::F32)?;
    on_device!(
        x.device(),
        cpu => cpu::forward(y.f32s_mut(), x.f32s(), idx.i32s(), &s),
        cuda => cuda::forward(&mut y, x, idx, &s),
    );
    Ok((y, s))
}

/// Rows that `idx` `[B,S]` asks for.
pub(in crate::ops) fn rows_of(op: &str, idx: &Tensor, b: usize) -> Result<usize> {
    let what = format!("{op}: idx");
    idx.expect_dtype(&what, DType::I32)?;
    let [_, s] = idx.dims(&what)?;
    idx.expect_shape(&what, &[b, s])?;
    Ok(s)
}

struct GatherRowsBwd {
    idx: Tensor,
    s: GatherShape,
}

impl Backward for GatherRowsBwd {
    fn op(&self) -> &'static str {
        "gather_rows"
    }
    fn saved_bytes(&self) -> usize {
        self.idx.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let s = self.s;
        let mut dx = Tensor::empty(dy.device(), &[s.b, s.n, s.c], DType::F32)?;
        // Where kernels run: which rows of an image name the same index.
        let links = if dy.device().runs_kernels() { s.b * s.s } else { 0 };
        let mut links = Tensor::empty(dy.device(), &[links], DType::I32)?;
        on_device!(
            dy.device(),
            cpu => cpu::backward(dx.f32s_mut(), dy.f32s(), self.idx.i32s(), &s),
            cuda => cuda::backward(&mut dx, &mut links, &dy, &self.idx, &s),
        );
        drop(links);
        sink.add(0, dx)
    }
}
