//! Anchors: boxes of fixed sizes and shapes at each cell of each pyramid level, in mmdetection's order and arithmetic.
//!
//! Main type: [`AnchorGenerator`]. Which anchors take part in training depends on the image's size:
//! [`crate::ops::match_boxes::Valid::Anchors`].

/// Sizes and shapes of the anchors of a pyramid.
///
/// Level l has `ratios × scales` anchors a cell (all scales of the first ratio, then of the second, …), centred at
/// (column, row) · stride, not at the middle of the cell; side `stride · scale`, height / width = ratio. Coordinates are not rounded.
#[derive(Clone, Debug, PartialEq)]
pub struct AnchorGenerator {
    /// Input pixels per cell of each level.
    pub strides_px: Vec<usize>,
    /// Height / width.
    pub ratios: Vec<f32>,
    /// Side of the square anchor in strides.
    pub scales: Vec<f32>,
}

impl AnchorGenerator {
    /// The region proposal network's over P2…P6: scale 8, ratios 1:2, 1:1, 2:1.
    pub fn rpn() -> Self {
        Self { strides_px: vec![4, 8, 16, 32, 64], ratios: vec![0.5, 1.0, 2.0], scales: vec![8.0] }
    }

    /// RetinaNet's over P3…P7: scales 4·2^(i/3), the same ratios.
    pub fn retinanet() -> Self {
        let scales = (0..3).map(|i| (4.0 * 2f64.powf(f64::from(i) / 3.0)) as f32).collect();
        Self { strides_px: vec![8, 16, 32, 64, 128], ratios: vec![0.5, 1.0, 2.0], scales }
    }

    /// Anchors of one cell.
    pub fn per_cell(&self) -> usize {
        self.ratios.len() * self.scales.len()
    }

    /// Rows and columns of the levels for a network input of `height`×`width`: halves rounded up, as padded convolutions of
    /// stride 2 give them.
    pub fn level_sizes(&self, height: usize, width: usize) -> Vec<(usize, usize)> {
        self.strides_px.iter().map(|&s| (height.div_ceil(s), width.div_ceil(s))).collect()
    }

    /// The anchors of the cell at the origin, level `l`.
    pub fn base(&self, l: usize) -> Vec<[f32; 4]> {
        let side = self.strides_px[l] as f32;
        let mut out = Vec::with_capacity(self.per_cell());
        for ratio in &self.ratios {
            let h_ratio = ratio.sqrt();
            let w_ratio = 1.0 / h_ratio;
            for scale in &self.scales {
                let (w, h) = (side * w_ratio * scale, side * h_ratio * scale);
                out.push([-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h]);
            }
        }
        out
    }

    /// All anchors of level `l` with `rows`×`columns` cells, `[rows·columns·A, 4]`, as the head's outputs lie.
    pub fn grid(&self, l: usize, rows: usize, columns: usize) -> Vec<f32> {
        let base = self.base(l);
        let stride = self.strides_px[l];
        let mut out = Vec::with_capacity(rows * columns * base.len() * 4);
        for row in 0..rows {
            for column in 0..columns {
                let (x, y) = ((column * stride) as f32, (row * stride) as f32);
                for b in &base {
                    out.extend([b[0] + x, b[1] + y, b[2] + x, b[3] + y]);
                }
            }
        }
        out
    }

    /// The anchors of all levels of an input of `height`×`width`, level after level, `[N,4]`.
    pub fn all(&self, height: usize, width: usize) -> Vec<f32> {
        let sizes = self.level_sizes(height, width);
        sizes.iter().enumerate().flat_map(|(l, &(rows, columns))| self.grid(l, rows, columns)).collect()
    }

    /// Number of anchors of each level.
    pub fn counts(&self, height: usize, width: usize) -> Vec<usize> {
        self.level_sizes(height, width).iter().map(|(rows, columns)| rows * columns * self.per_cell()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::match_boxes::takes_part;
    use crate::ops::testing::Fixture;

    #[test]
    fn equals_mmdetection() {
        let f = Fixture::ops("anchors");
        for (name, g, cells) in
            [("rpn", AnchorGenerator::rpn(), [4, 8, 16, 32, 64]), ("retina", AnchorGenerator::retinanet(), [8, 16, 32, 64, 128])]
        {
            let size = [118.0, 150.0, 128.0, 160.0];
            let sizes = g.level_sizes(160, 192);
            let mut all = Vec::new();
            for (l, stride) in cells.into_iter().enumerate() {
                assert_eq!(sizes[l], (160usize.div_ceil(stride), 192usize.div_ceil(stride)));
                assert_eq!(g.base(l).concat(), f.f32s(&format!("{name}.base.{l}")));
                let grid = g.grid(l, sizes[l].0, sizes[l].1);
                let key = format!("{name}.grid.{l}");
                assert!(!f.has(&key) || grid == f.f32s(&key), "{key}");
                let valid: Vec<u8> = flags(&grid, &size, None);
                let key = format!("{name}.valid_128x160.{l}");
                assert!(!f.has(&key) || valid == f.u8s(&key), "{key}");
                all.extend(grid);
            }
            assert_eq!(all, g.all(160, 192));
            assert_eq!(g.counts(160, 192).iter().sum::<usize>() * 4, all.len());
            for (border, key) in [(None, "-1"), (Some(0.0), "0"), (Some(5.0), "5")] {
                assert_eq!(flags(&all, &size, border), f.u8s(&format!("{name}.inside_118x150_border{key}")), "{key}");
            }
        }
    }

    fn flags(anchors: &[f32], size: &[f32], border: Option<f32>) -> Vec<u8> {
        anchors.chunks(4).map(|a| u8::from(takes_part(a.try_into().unwrap(), size, border))).collect()
    }

    #[test]
    fn cells_far_out_are_judged_as_exactly_as_near_ones() {
        let g = AnchorGenerator::retinanet();
        let (rows, columns) = g.level_sizes(1344, 2688)[0];
        for pad_w in [1usize, 7, 8, 9, 1336, 2681, 2687, 2688] {
            let size = [1344.0, pad_w as f32, 1344.0, pad_w as f32];
            let valid = flags(&g.grid(0, rows, columns), &size, None);
            let want: Vec<u8> = (0..rows * columns * 9).map(|i| u8::from(i / 9 % columns < pad_w.div_ceil(8))).collect();
            assert!(valid == want, "{pad_w}");
        }
    }

    #[test]
    fn nan_takes_no_part() {
        assert!(!takes_part([f32::NAN, 0.0, 1.0, 1.0], &[10.0; 4], None));
    }
}
