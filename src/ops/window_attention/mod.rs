//! Multi-head attention within (shifted) windows of a map, with relative position bias: Swin Transformer's.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::cpu::windows::Windows;
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "window_attention", gradient: Gradient::Yes };

/// Widest window: rows of scores are held in registers.
const MAX_SIDE: usize = 12;
/// Widest head.
const MAX_HEAD_DIM: usize = 64;

/// How a map is cut, and into how many heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowAttention {
    /// Rows and columns of a window, at most 12.
    pub window: usize,
    /// Rows and columns by which windows are moved down and right, less than `window`: 0, or half of it in every other
    /// block.
    pub shift: usize,
    /// Heads; each has `C / heads` channels, at most 64.
    pub heads: usize,
}

/// Sizes of one problem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    windows: Windows,
    c: usize,
    heads: usize,
}

impl AttentionShape {
    fn head_dim(&self) -> usize {
        self.c / self.heads
    }

    /// The factor of q, `1 / sqrt(head_dim)`.
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim() as f32).sqrt()
    }

    /// Relative positions of two tokens.
    fn table_rows(&self) -> usize {
        (2 * self.windows.side - 1).pow(2)
    }
}

/// `y = softmax(HD^-½ q kᵀ + bias + mask) v` for each head of each window; windows of `window`² tokens, moved by
/// `shift` as if by torch.roll, over the map padded at its bottom and right to whole windows.
///
/// Entry `(Δrow + window - 1) (2 window - 1) + Δcolumn + window - 1` of `bias_table` belongs to a query Δ below and
/// right of a key. In a window that the shift has made of several ends of the map the mask is -100 between them. Padded
/// tokens are zeros *before* the layer that makes qkv: their q, k and v are its bias, and all tokens of their window
/// attend to them; what they get is dropped.
///
/// Shapes: qkv `[N,H,W,3C]`, columns q, k, v, each by head, y `[N,H,W,C]`, floats of one type; qkv_bias `[3C]`,
/// bias_table `[(2 window - 1)², heads]`, f32.
/// Saves: qkv, the logarithm of each softmax's denominator, f32 `[windows,heads,T]`; on a GPU y. No matrix of scores.
/// Gradient: qkv, written over it where nobody else holds it (CPU); bias_table; qkv_bias, of padded tokens only (real
/// ones are in that of qkv; none if H and W are multiples of the window).
/// Cost: 4·T²·C flops a window forward, 10·T²·C backward; reads 3, writes 1 map of C channels, backward 4 and 3.
/// Errors: `Shape`, `Dtype`; `Value` if the window is 0 or above 12, the shift not less than it, or a head wider than
/// 64 channels.
/// Reference: Liu et al. 2021, section 3.2; mmdetection's ShiftWindowMSA.
pub fn window_attention(
    tape: &mut Tape,
    qkv: &Var,
    qkv_bias: &Var,
    bias_table: &Var,
    how: WindowAttention,
) -> Result<Var> {
    let device = qkv.device().clone();
    let _op = device.enter("window_attention");
    let s = check(qkv.value(), qkv_bias.value(), bias_table.value(), how)?;
    if wide::needed(qkv) {
        return wide::run(tape, &[qkv, qkv_bias, bias_table], move |tape, v| {
            window_attention(tape, &v[0], &v[1], &v[2], how)
        });
    }
    let Windows { n, h, w, .. } = s.windows;
    let mut y = Tensor::empty(&device, &[n, h, w, s.c], qkv.value().dtype())?;
    // Evaluation needs no statistics.
    let windows = if tape.will_record(&[qkv, qkv_bias, bias_table]) { s.windows.count() } else { 0 };
    let mut lse = Tensor::empty(&device, &[windows, s.heads, s.windows.tokens()], DType::F32)?;
    let (x, bias, table) = (qkv.value(), qkv_bias.value(), bias_table.value());
    {
        let elements = if device.runs_kernels() { 0 } else { cpu::forward_workspace(&s) };
        let mut ws = Tensor::empty(&device, &[elements], DType::F32)?;
        on_device!(
            &device,
            cpu => cpu::forward(
                y.f32s_mut(), lse.f32s_mut(), x.f32s(), bias.f32s(), table.f32s(), ws.f32s_mut(), &s),
            cuda => cuda::forward(&mut y, &mut lse, x, bias, table, &s),
        );
    }
    let saved = WindowAttentionBwd {
        qkv: x.clone(),
        qkv_bias: bias.clone(),
        table: table.clone(),
        lse,
        y: device.runs_kernels().then(|| y.clone()),
        s,
    };
    Ok(tape.record([qkv, qkv_bias, bias_table], y, saved))
}

fn check(qkv: &Tensor, qkv_bias: &Tensor, table: &Tensor, how: WindowAttention) -> Result<AttentionShape> {
    let [n, h, w, c3] = qkv.dims("window_attention: qkv")?;
    qkv.expect_float("window_attention: qkv")?;
    let WindowAttention { window: side, shift, heads } = how;
    if side == 0 || side > MAX_SIDE || shift >= side {
        let message = format!("windows of side {side}, moved by {shift}: want 1 to {MAX_SIDE}, and a shift below that");
        return Err(Error::value("window_attention", message));
    }
    let c = c3 / 3;
    if heads == 0 || c == 0 || !c3.is_multiple_of(3) || !c.is_multiple_of(heads) {
        let want = format!("[N,H,W,3C], C a multiple of {heads} heads");
        return Err(Error::Shape { what: "window_attention: qkv".into(), want, got: qkv.shape().to_vec() });
    }
    if c / heads > MAX_HEAD_DIM {
        let message = format!("{heads} heads of {} channels, at most {MAX_HEAD_DIM} each", c / heads);
        return Err(Error::value("window_attention", message));
    }
    let s = AttentionShape { windows: Windows { n, h, w, side, shift }, c, heads };
    qkv_bias.expect_shape("window_attention: qkv_bias", &[c3])?;
    qkv_bias.expect_dtype("window_attention: qkv_bias", DType::F32)?;
    table.expect_shape("window_attention: bias_table", &[s.table_rows(), heads])?;
    table.expect_dtype("window_attention: bias_table", DType::F32)?;
    Ok(s)
}

struct WindowAttentionBwd {
    qkv: Tensor,
    qkv_bias: Tensor,
    table: Tensor,
    lse: Tensor,
    y: Option<Tensor>,
    s: AttentionShape,
}

impl Backward for WindowAttentionBwd {
    fn op(&self) -> &'static str {
        "window_attention"
    }

    fn saved_bytes(&self) -> usize {
        self.qkv.bytes() + self.lse.bytes() + self.y.as_ref().map_or(0, Tensor::bytes)
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let device = dy.device().clone();
        let WindowAttentionBwd { qkv, qkv_bias, table, lse, y, s } = *self;
        let kernels = device.runs_kernels();
        let shape = if kernels { cuda::partial_sums(&s) } else { cpu::partial_sums(&s) };
        let mut partial = Tensor::empty(&device, &shape, DType::F32)?;
        // A window reads its own tokens before it writes them.
        let (mut dqkv, qkv) =
            if kernels { (Tensor::empty(&device, qkv.shape(), qkv.dtype())?, Some(qkv)) } else { qkv.into_output()? };
        {
            let elements = if kernels { 0 } else { cpu::backward_workspace(&s) };
            let mut ws = Tensor::empty(&device, &[elements], DType::F32)?;
            on_device!(
                &device,
                cpu => {
                    let qkv = qkv.as_ref().map(Tensor::f32s);
                    let (qkv_bias, table, lse) = (qkv_bias.f32s(), table.f32s(), lse.f32s());
                    let saved = cpu::Saved { qkv, qkv_bias, table, lse };
                    cpu::backward(dqkv.f32s_mut(), partial.f32s_mut(), dy.f32s(), &saved, ws.f32s_mut(), &s)
                },
                cuda => {
                    let (qkv, y) = (qkv.as_ref().expect("kept on a GPU"), y.as_ref().expect("saved on a GPU"));
                    cuda::backward(&mut dqkv, &mut partial, &dy, qkv, &qkv_bias, &table, &lse, y, &s)
                },
            );
        }
        drop((dy, qkv, y, lse));
        sink.add(0, dqkv)?;
        if s.windows.padded() {
            sink.write(1, &device, &[3 * s.c], DType::F32, |out, accumulate| {
                on_device!(
                    &device,
                    cpu => cpu::fold_bias(out.f32s_mut(), accumulate, partial.f32s(), &s),
                    cuda => cuda::fold_bias(out, accumulate, &partial, &s),
                );
                Ok(())
            })?;
        }
        sink.write(2, &device, &[s.table_rows(), s.heads], DType::F32, |out, accumulate| {
            on_device!(
                &device,
                cpu => cpu::fold_table(out.f32s_mut(), accumulate, partial.f32s(), &s),
                cuda => cuda::fold_table(out, accumulate, &partial, &s),
            );
            Ok(())
        })
    }
}
