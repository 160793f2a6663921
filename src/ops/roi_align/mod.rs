//! RoIAlign over all levels of a feature pyramid.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "roi_align", gradient: Gradient::Yes };

/// Largest number of pyramid levels: a kernel takes the address of each level.
const MAX_LEVELS: usize = 8;

/// The parameters of RoIAlign.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoiAlign {
    /// Output rows.
    pub ph: usize,
    /// Output columns.
    pub pw: usize,
    /// Samples per bin and axis; 0 means one per feature pixel, `ceil(size / bins)`.
    pub sampling_ratio: usize,
    /// If true, pixel centres are at half coordinates (He et al. 2017 as corrected in Detectron2). If false, the
    /// original version, in which boxes are at least one feature pixel wide.
    pub aligned: bool,
    /// Scale of the level rule in input pixels: boxes with `sqrt(w h)` below twice this use level 0, and each doubling
    /// after that is one level more.
    pub finest_scale_px: f32,
    /// How a GPU computes the gradient.
    pub gradient: RoiGradient,
}

/// How a GPU computes the gradient of RoIAlign; the CPU always gathers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoiGradient {
    /// Each element is summed in the order of the boxes: the same on every run.
    Gather,
    /// Bins are added to pixels atomically: rounding differs from run to run. 16-bit levels need an f32 workspace.
    Atomic,
}

impl RoiAlign {
    /// mmdetection's parameters: adaptive sampling, aligned, finest scale 56. The gradient is the same on every run.
    pub fn new(ph: usize, pw: usize) -> Self {
        let gradient = RoiGradient::Gather;
        Self { ph, pw, sampling_ratio: 0, aligned: true, finest_scale_px: 56.0, gradient }
    }

    /// The level of a box: `floor(log2(sqrt(w h) / finest + 1e-6))`, clamped. NaN and inverted boxes get level 0.
    pub fn level(&self, roi: [f32; 4], levels: usize) -> usize {
        let side = ((roi[2] - roi[0]) * (roi[3] - roi[1])).sqrt();
        let ratio = side / self.finest_scale_px + 1e-6;
        // The ratio is compared with powers of two: a logarithm just below an integer may round up, and not alike on
        // every device.
        (1..levels).filter(|&l| ratio >= 2f32.powi(l as i32)).count()
    }

    /// Start and size of `[lo, hi]` in feature pixels.
    fn extent(&self, lo: f32, hi: f32, stride_px: f32) -> (f32, f32) {
        let (scale, offset) = (1.0 / stride_px, if self.aligned { 0.5 } else { 0.0 });
        let start = lo * scale - offset;
        let size = (hi * scale - offset) - start;
        (start, if self.aligned || size > 1.0 { size } else { 1.0 })
    }
}

/// Each box becomes `PH`×`PW` bins of the pyramid level that suits its size; a bin is the mean of bilinear samples.
///
/// Shapes: levels `[N,H_l,W_l,C]`, y `[N·S,PH,PW,C]`, floats of one type, levels finest first; rois `[N,S,4]` f32;
/// valid `[N,S]` i32 (negative: skipped, y is 0).
/// Saves: rois, valid.
/// Gradient: levels (not the boxes).
/// Cost: reads N·S·PH·PW·(samples + 1)² pixels of C channels, mostly from cache, writes N·S·PH·PW·C.
/// Errors: `Shape` if a level is not `[N,H,W,C]` with the same N and C; `Dtype`; `Value` without levels or with more
/// than 8, or if their number is not that of `strides_px`.
/// Reference: He et al. 2017, section 3; level rule Lin et al. 2017, eq. 1, as mmdetection has it.
pub fn roi_align(
    tape: &mut Tape,
    levels: &[&Var],
    strides_px: &[f32],
    rois: &Tensor,
    valid: &Tensor,
    p: RoiAlign,
) -> Result<Var> {
    let _op = tape.device().enter("roi_align");
    let Some(first) = levels.first().filter(|_| levels.len() == strides_px.len()) else {
        return Err(Error::value("roi_align", format!("{} levels, {} strides", levels.len(), strides_px.len())));
    };
    if p.ph == 0 || p.pw == 0 || strides_px.iter().any(|&s| s.is_nan() || s <= 0.0) {
        return Err(Error::value("roi_align", format!("{}×{} bins at strides {strides_px:?}", p.ph, p.pw)));
    }
    if levels.len() > MAX_LEVELS {
        return Err(Error::value("roi_align", format!("{} levels, at most {MAX_LEVELS}", levels.len())));
    }
    let [n, _, _, c] = first.value().dims("roi_align: levels")?;
    let dtype = first.value().dtype();
    first.value().expect_float("roi_align: levels")?;
    let mut shapes = Vec::with_capacity(levels.len());
    for (x, &stride_px) in levels.iter().zip(strides_px) {
        x.value().expect_dtype("roi_align: levels", dtype)?;
        let [n_l, h, w, c_l] = x.value().dims("roi_align: levels")?;
        if n_l != n || c_l != c || h * w == 0 {
            let want = format!("[{n},H,W,{c}], H and W not 0");
            return Err(Error::Shape { what: "roi_align: levels".into(), want, got: x.shape().to_vec() });
        }
        shapes.push(cpu::LevelShape { h, w, stride_px });
    }
    let [_, s, _] = rois.dims("roi_align: rois")?;
    rois.expect_shape("roi_align: rois", &[n, s, 4])?;
    rois.expect_dtype("roi_align: rois", DType::F32)?;
    valid.expect_shape("roi_align: valid", &[n, s])?;
    valid.expect_dtype("roi_align: valid", DType::I32)?;

    if wide::needed(first) {
        let (strides_px, rois, valid) = (strides_px.to_vec(), rois.clone(), valid.clone());
        return wide::run(tape, levels, move |tape, v| {
            roi_align(tape, &v.iter().collect::<Vec<_>>(), &strides_px, &rois, &valid, p)
        });
    }
    let saved = RoiAlignBwd { shapes, rois: rois.clone(), valid: valid.clone(), n, c, p };
    let mut y = Tensor::empty(tape.device(), &[n * s, p.ph, p.pw, c], dtype)?;
    on_device!(
        tape.device(),
        cpu => {
            let xs: Vec<&[f32]> = levels.iter().map(|x| x.value().f32s()).collect();
            cpu::forward(y.f32s_mut(), &xs, &saved.shapes, &cpu::Rois::of(rois, valid), c, &p);
        },
        cuda => cuda::forward(&mut y, levels, &saved),
    );
    Ok(tape.record_all(levels, y, saved))
}

impl<'a> cpu::Rois<'a> {
    fn of(rois: &'a Tensor, valid: &'a Tensor) -> Self {
        Self { boxes: rois.f32s(), valid: valid.i32s(), per_image: rois.dim(1) }
    }
}

struct RoiAlignBwd {
    shapes: Vec<cpu::LevelShape>,
    rois: Tensor,
    valid: Tensor,
    n: usize,
    c: usize,
    p: RoiAlign,
}

impl Backward for RoiAlignBwd {
    fn op(&self) -> &'static str {
        "roi_align"
    }
    fn saved_bytes(&self) -> usize {
        self.rois.bytes() + self.valid.bytes()
    }
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let device = dy.device();
        let mut dxs = Vec::with_capacity(self.shapes.len());
        for l in &self.shapes {
            dxs.push(Tensor::empty(device, &[self.n, l.h, l.w, self.c], dy.dtype())?);
        }
        let mut workspace =
            if device.runs_kernels() { cuda::workspace(device, &self, dy.dtype())? } else { Vec::new() };
        on_device!(
            device,
            cpu => {
                let mut views: Vec<&mut [f32]> = dxs.iter_mut().map(Tensor::f32s_mut).collect();
                cpu::backward(&mut views, &self.shapes, dy.f32s(), &cpu::Rois::of(&self.rois, &self.valid), self.c, &self.p);
            },
            cuda => match self.p.gradient {
                RoiGradient::Gather => cuda::backward(&mut dxs, &mut workspace, &dy, &self),
                RoiGradient::Atomic => cuda::backward_atomic(&mut dxs, &mut workspace, &dy, &self),
            },
        );
        drop(workspace);
        for (l, dx) in dxs.into_iter().enumerate() {
            sink.add(l, dx)?;
        }
        Ok(())
    }
}
