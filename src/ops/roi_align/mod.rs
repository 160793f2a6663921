//! RoIAlign over all levels of a feature pyramid.

pub mod cpu;
#[cfg(test)]
mod tests;

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
