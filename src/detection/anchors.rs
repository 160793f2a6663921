//! Anchors of a feature pyramid: one set for each input shape, computed once.

use crate::device::Device;
use crate::error::Result;
use crate::ops::anchors_valid::{AnchorGrid, AnchorLevel};
use crate::tensor::{DType, Tensor};

/// The shapes of the anchors of a cell.
#[derive(Clone, Debug, PartialEq)]
pub struct AnchorShapes {
    /// Sides in strides.
    pub scales: Vec<f32>,
    /// Ratios of height to width.
    pub ratios: Vec<f32>,
    /// Stride of each level in pixels.
    pub strides_px: Vec<usize>,
    /// Whether the corners of the anchors around the origin are rounded to whole pixels (as in torchvision).
    pub rounded: bool,
}

impl AnchorShapes {
    /// Number of anchors in one cell.
    pub fn per_cell(&self) -> usize {
        self.scales.len() * self.ratios.len()
    }
}

/// The anchors of all levels, concatenated; within a level, in the order row, column, anchor of the cell.
pub struct Anchors {
    /// `[N,4]` f32.
    pub boxes: Tensor,
    levels: Vec<AnchorLevel>,
    per_cell: usize,
}

impl Anchors {
    /// The anchors for an input of `h`×`w` pixels. Anchors are centred at multiples of the stride, not at pixel
    /// centres, and are rounded only with [`AnchorShapes::rounded`]. Within a cell, ratios vary slowest, then scales.
    pub fn new(device: &Device, shapes: &AnchorShapes, h: usize, w: usize) -> Result<Anchors> {
        let levels: Vec<AnchorLevel> = shapes
            .strides_px
            .iter()
            .map(|&s| AnchorLevel { h: h.div_ceil(s), w: w.div_ceil(s), stride_px: s })
            .collect();
        let per_cell = shapes.per_cell();
        let n: usize = levels.iter().map(|l| l.h * l.w * per_cell).sum();
        let mut boxes = Tensor::empty(device, &[n, 4], DType::F32)?;
        if device.has_data() {
            let mut values = Vec::with_capacity(n * 4);
            for level in &levels {
                let base = base_anchors(level.stride_px as f32, shapes);
                for y in 0..level.h {
                    for x in 0..level.w {
                        let (cx, cy) = ((x * level.stride_px) as f32, (y * level.stride_px) as f32);
                        values.extend(base.iter().flat_map(|b| [b[0] + cx, b[1] + cy, b[2] + cx, b[3] + cy]));
                    }
                }
            }
            boxes.write(&values)?;
        }
        Ok(Anchors { boxes, levels, per_cell })
    }

    /// The anchors as [`anchors_valid`](crate::ops::anchors_valid::anchors_valid) takes them.
    pub fn grid(&self) -> AnchorGrid<'_> {
        AnchorGrid { boxes: &self.boxes, levels: &self.levels, per_cell: self.per_cell }
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// Number of anchors in each level.
    pub fn level_sizes(&self) -> Vec<usize> {
        self.levels.iter().map(|l| l.h * l.w * self.per_cell).collect()
    }
}

/// The anchors of one cell, centred at the origin: width `size scale / sqrt(ratio)`, height `size scale sqrt(ratio)`.
fn base_anchors(size: f32, shapes: &AnchorShapes) -> Vec<[f32; 4]> {
    let mut v = Vec::with_capacity(shapes.per_cell());
    for &ratio in &shapes.ratios {
        let h_ratio = ratio.sqrt();
        let w_ratio = 1.0 / h_ratio;
        for &scale in &shapes.scales {
            let (w, h) = (size * w_ratio * scale, size * h_ratio * scale);
            let corners = [-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h];
            v.push(if shapes.rounded { corners.map(f32::round_ties_even) } else { corners });
        }
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::anchors_valid::anchors_valid;
    use crate::ops::common::testing::OpFixture;

    /// Anchor shapes of mmdetection's region proposal network.
    fn rpn() -> AnchorShapes {
        let ratios = vec![0.5, 1.0, 2.0];
        AnchorShapes { scales: vec![8.0], ratios, strides_px: vec![4, 8, 16, 32, 64], rounded: false }
    }

    /// Anchor shapes of mmdetection's RetinaNet: three scales per octave.
    fn retina() -> AnchorShapes {
        let scales = (0..3).map(|i| (4.0 * 2f64.powf(f64::from(i) / 3.0)) as f32).collect();
        AnchorShapes { scales, strides_px: vec![8, 16, 32, 64, 128], ..rpn() }
    }

    /// The CPU, and the GPUs of this build.
    fn devices() -> Vec<Device> {
        vec![
            Device::cpu(),
            #[cfg(feature = "sim")]
            Device::sim(1),
        ]
    }

    /// More levels than one launch takes, images of all sizes, and invalid sizes.
    #[test]
    fn is_the_same_everywhere() {
        let strides_px = (0..11).map(|i| 4 << (i / 2)).collect();
        let cfg = AnchorShapes { strides_px, ..rpn() };
        let nan = f32::NAN;
        let sizes = [[90.0, 100.0, 96.0, 128.0], [1e9; 4], [0.0; 4], [50.0, nan, nan, 64.0], [-8.0, 9.0, 33.0, -33.0]];
        for border in [-1.0, 0.0, 7.5, nan] {
            let mut flags = devices().into_iter().map(|dev| {
                let size = Tensor::from_slice(&dev, &[5, 4], &sizes.concat()).unwrap();
                anchors_valid(Anchors::new(&dev, &cfg, 100, 130).unwrap().grid(), &size, border)
                    .unwrap()
                    .to_vec::<u8>()
                    .unwrap()
            });
            let cpu = flags.next().unwrap();
            assert!(flags.all(|f| f == cpu), "border {border}");
        }
    }

    #[test]
    fn equals_mmdetection() {
        let f = OpFixture::open("anchors");
        let configs = [("rpn", rpn()), ("retina", retina())];
        for (dev, (name, cfg)) in devices().iter().flat_map(|dev| configs.iter().map(move |c| (dev, c))) {
            let size = Tensor::from_slice(dev, &[1, 4], &[118.0f32, 150.0, 128.0, 160.0]).unwrap();
            let a = Anchors::new(dev, cfg, 160, 192).unwrap();
            let flags = |border| anchors_valid(a.grid(), &size, border).unwrap().to_vec::<u8>().unwrap();
            let boxes = a.boxes.to_vec::<f32>().unwrap();
            let (mut start, mut found) = (0, 0);
            for (l, n) in a.level_sizes().into_iter().enumerate() {
                let base = base_anchors(cfg.strides_px[l] as f32, cfg);
                assert_eq!(base.concat(), f.f32(&format!("{name}.base.{l}")));
                let (grid, key) = (&boxes[4 * start..4 * (start + n)], format!("{name}.grid.{l}"));
                if f.has(&key) {
                    assert!(grid == f.f32(&key), "{key}");
                    found += 1;
                }
                let key = format!("{name}.valid_128x160.{l}");
                assert!(!f.has(&key) || flags(-1.0)[start..start + n] == f.u8(&key), "{key}");
                start += n;
            }
            assert_eq!((start, found), (a.boxes.dim(0), 3));
            for border in [-1, 0, 5] {
                let key = format!("{name}.inside_118x150_border{border}");
                assert!(flags(border as f32) == f.u8(&key), "{key}");
            }
        }
    }
}
