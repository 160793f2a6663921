//! RoIAlign over all levels of a feature pyramid.

mod cpu;
#[cfg(test)]
mod tests;

use self::cpu::{LevelShape, Rois};
use super::{Gradient, OpInfo};
use crate::error::{Error, Result};
use crate::on_device;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "roi_align", gradient: Gradient::Yes };

/// What RoIAlign does with a box.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoiAlign {
    /// Output rows.
    pub ph: usize,
    /// Output columns.
    pub pw: usize,
    /// Samples per bin and axis; 0: one per feature pixel, `ceil(size / bins)`.
    pub sampling_ratio: usize,
    /// True: pixel centres are at half coordinates (He et al. 2017 as corrected in Detectron2). False: the original, with
    /// boxes at least one feature pixel wide.
    pub aligned: bool,
    /// Side in input pixels of the boxes that start level 1; those below it are level 0's, twice as large level 1's.
    pub finest_scale_px: f32,
}

impl RoiAlign {
    /// mmdetection's: adaptive sampling, aligned, finest scale 56.
    pub fn new(ph: usize, pw: usize) -> Self {
        Self { ph, pw, sampling_ratio: 0, aligned: true, finest_scale_px: 56.0 }
    }

    /// The level of a box: `floor(log2(sqrt(w h) / finest + 1e-6))`, clamped. NaN and inverted boxes get level 0.
    pub fn level(&self, roi: [f32; 4], levels: usize) -> usize {
        let side = ((roi[2] - roi[0]) * (roi[3] - roi[1])).sqrt();
        let level = (side / self.finest_scale_px + 1e-6).log2().floor();
        (level.max(0.0) as usize).min(levels.saturating_sub(1))
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
/// Shapes: levels `[N,H_l,W_l,C]` f32, finest first; rois `[N,S,4]` f32; valid `[N,S]` i32 (negative: skipped, y is 0);
/// y `[N·S,PH,PW,C]`.
/// Saves: rois, valid.
/// Gradient: levels (not the boxes).
/// Cost: reads N·S·PH·PW·(samples + 1)² pixels of C channels, mostly from cache, writes N·S·PH·PW·C.
/// Errors: `Shape` if a level is not `[N,H,W,C]` with the same N and C; `Value` without levels, or if their number is
/// not that of `strides_px`.
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
    let [n, _, _, c] = first.value().dims("roi_align: levels")?;
    let mut shapes = Vec::with_capacity(levels.len());
    for (x, &stride_px) in levels.iter().zip(strides_px) {
        x.value().expect_dtype("roi_align: levels", DType::F32)?;
        let [n_l, h, w, c_l] = x.value().dims("roi_align: levels")?;
        if n_l != n || c_l != c || h * w == 0 {
            let want = format!("[{n},H,W,{c}], H and W not 0");
            return Err(Error::Shape { what: "roi_align: levels".into(), want, got: x.shape().to_vec() });
        }
        shapes.push(LevelShape { h, w, stride_px });
    }
    let [_, s, _] = rois.dims("roi_align: rois")?;
    rois.expect_shape("roi_align: rois", &[n, s, 4])?;
    rois.expect_dtype("roi_align: rois", DType::F32)?;
    valid.expect_shape("roi_align: valid", &[n, s])?;
    valid.expect_dtype("roi_align: valid", DType::I32)?;

    let mut y = Tensor::empty(tape.device(), &[n * s, p.ph, p.pw, c], DType::F32)?;
    on_device!(tape.device(), cpu => {
        let xs: Vec<&[f32]> = levels.iter().map(|x| x.value().f32s()).collect();
        cpu::forward(y.f32s_mut(), &xs, &shapes, &Rois::of(rois, valid), c, &p);
    });
    Ok(tape.record_all(levels, y, RoiAlignBwd { shapes, rois: rois.clone(), valid: valid.clone(), n, c, p }))
}

impl<'a> Rois<'a> {
    fn of(rois: &'a Tensor, valid: &'a Tensor) -> Self {
        Self { boxes: rois.f32s(), valid: valid.i32s(), per_image: rois.dim(1) }
    }
}

struct RoiAlignBwd {
    shapes: Vec<LevelShape>,
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
        let mut dxs = Vec::with_capacity(self.shapes.len());
        for l in &self.shapes {
            dxs.push(Tensor::empty(dy.device(), &[self.n, l.h, l.w, self.c], DType::F32)?);
        }
        on_device!(dy.device(), cpu => {
            let mut views: Vec<&mut [f32]> = dxs.iter_mut().map(Tensor::f32s_mut).collect();
            cpu::backward(&mut views, &self.shapes, dy.f32s(), &Rois::of(&self.rois, &self.valid), self.c, &self.p);
        });
        for (l, dx) in dxs.into_iter().enumerate() {
            sink.add(l, dx)?;
        }
        Ok(())
    }
}
