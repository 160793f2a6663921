//! Draws the masks of the ground truth on a batch's canvas, as positions of run ends ("toggles"). A mask is rasterised
//! at the size of the original picture, resized by nearest neighbour, cropped and mirrored (fixtures README, 34), all
//! without a bitmap: [`MaskMap`] says where each boundary of the source falls on the canvas, and [`MaskScratch`] moves
//! the run ends of the columns there.

use super::coco::Segmentation;
use super::resize::{Axis, Window};
use super::toggles::{Change, MaskScratch};

/// Positions on the canvas of the boundaries between the columns and between the rows of a picture.
///
/// OpenCV's nearest neighbour: output `d` shows source `floor(d / (to / from))`. So a boundary falls on the first
/// output that shows the source pixel behind it, and a span of the source becomes the span between its two boundaries.
#[derive(Clone, Debug, Default)]
pub struct MaskMap {
    source: (u32, u32),
    columns: Vec<u32>,
    rows: Vec<u32>,
}

impl MaskMap {
    /// Sets the map for a picture of `source` (width, height) that is drawn through `window`.
    pub fn set(&mut self, source: (u32, u32), window: &Window) {
        self.source = source;
        edges(&mut self.columns, window.columns(source.0));
        edges(&mut self.rows, window.rows(source.1));
    }
}

/// Writes the positions on the window of boundaries 0, 1, … `source` of an axis.
fn edges(out: &mut Vec<u32>, Axis { source: from, resized: to, at, size, flip }: Axis) {
    let scale = 1.0 / (f64::from(to) / f64::from(from)); // in OpenCV's order, which decides how ties round
    let place = |d: u32| {
        let d = d.clamp(at, at + size) - at;
        if flip { size - d } else { d }
    };
    out.clear();
    for d in 0..to {
        let shown = ((f64::from(d) * scale) as u32).min(from - 1);
        while out.len() <= shown as usize {
            out.push(place(d));
        }
    }
    out.resize(from as usize + 1, place(to));
}

impl MaskScratch {
    /// Writes the toggles of a mask on a canvas of `width` columns to the front of `out`. A toggle is a position
    /// `y * width + x`; they ascend, and a pixel is set if an odd number of them are at or before it. A run ends with
    /// its row, so at `(y + 1) * width` at the latest. Returns the number of toggles; if it is above `out.len()`,
    /// nothing is written.
    ///
    /// Cost: linear in the length of the outline, before and after resizing.
    pub fn draw(&mut self, mask: &Segmentation, map: &MaskMap, width: u32, out: &mut [i32]) -> usize {
        let mut counts = std::mem::take(&mut self.counts);
        mask.counts(map.source, &mut counts);
        self.trace(&counts, map.source.1, |x| map.columns[x as usize], |y| map.rows[y as usize]);
        self.counts = counts;
        let (top, total) = self.count_rows();
        if total > out.len() {
            return total;
        }
        let mut next = 0;
        for n in &mut self.rows {
            next += std::mem::replace(n, next);
        }
        let mut write = |c: &Change| {
            for y in c.rows[0]..c.rows[1] {
                let at = &mut self.rows[(y - top) as usize];
                out[*at as usize] = (y * width + c.x) as i32;
                *at += 1;
            }
        };
        // The changes of a mirrored picture run from right to left.
        if self.changes.first().map(|c| c.x) <= self.changes.last().map(|c| c.x) {
            self.changes.iter().for_each(&mut write);
        } else {
            self.changes.iter().rev().for_each(&mut write);
        }
        total
    }
}

/// The most toggles that the masks of a picture of `from` rows can have after resizing it to `to` rows or fewer. At
/// their own size they have `all` toggles, and `falls` is the sum of
/// [`RowToggles::falls`](super::toggles::RowToggles::falls).
///
/// A row of the canvas has at most as many toggles as the source row that it shows: resizing along a row only merges
/// runs. Let source row `s` have `t(s)` toggles, let `f = to / from`, and let `N(s) = f * s + e(s)` with `0 <= e <= 1`
/// be the number of output rows that show source rows above `s`. Then all rows together have
/// `sum t(s) (N(s+1) - N(s)) = f sum t + sum e(s) (t(s-1) - t(s)) <= f sum t + falls` toggles.
///
/// A second bound: each source row is shown at most `floor(f) + 1` times, and once if `f <= 1`. Both bounds grow with
/// `f`, so they hold for smaller scales too; a crop only leaves rows and columns out.
pub(super) fn most_toggles(all: u64, falls: u64, from: u64, to: u64) -> u64 {
    let times = if to <= from { 1 } else { to / from + 1 };
    (all * times).min((all * to).div_ceil(from) + falls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toggles::RowToggles;
    use crate::philox::{Purpose, Rng, Stream};

    /// A mask by rows.
    #[derive(Clone, PartialEq, Debug)]
    struct Bitmap {
        w: u32,
        h: u32,
        bits: Vec<bool>,
    }

    impl Bitmap {
        fn new(w: u32, h: u32, f: impl Fn(u32, u32) -> bool) -> Self {
            Self { w, h, bits: (0..h).flat_map(|y| (0..w).map(move |x| (x, y))).map(|(x, y)| f(x, y)).collect() }
        }

        fn at(&self, x: u32, y: u32) -> bool {
            self.bits[(y * self.w + x) as usize]
        }

        fn of(mask: &Segmentation, (w, h): (u32, u32)) -> Self {
            let columns = hotcoco::mask::decode(&mask.rle((w, h)));
            Self::new(w, h, |x, y| columns[(x * h + y) as usize] != 0)
        }

        fn segmentation(&self, scratch: &mut MaskScratch) -> Segmentation {
            let columns = Self::new(self.h, self.w, |y, x| self.at(x, y));
            let bytes: Vec<u8> = columns.bits.iter().map(|&b| u8::from(b)).collect();
            let rle = hotcoco::mask::encode(&bytes, self.h, self.w).unwrap();
            Segmentation::from_counts(&rle.counts, (self.w, self.h), scratch).unwrap()
        }

        /// Resized, cropped, mirrored and padded to `canvas`, pixel by pixel.
        fn transformed(&self, window: &Window, canvas: (u32, u32)) -> Self {
            let nearest = |d: u32, from: u32, to: u32| {
                let scale = 1.0 / (f64::from(to) / f64::from(from));
                ((f64::from(d) * scale).floor() as u32).min(from - 1)
            };
            let resized = Self::new(window.resized.0, window.resized.1, |x, y| {
                self.at(nearest(x, self.w, window.resized.0), nearest(y, self.h, window.resized.1))
            });
            let (w, h) = window.size;
            let cropped = Self::new(w, h, |x, y| resized.at(window.at.0 + x, window.at.1 + y));
            let flip = |v: u32, n: u32, flip: bool| if flip { n - 1 - v } else { v };
            Self::new(canvas.0, canvas.1, |x, y| {
                x < w && y < h && cropped.at(flip(x, w, window.flip_x), flip(y, h, window.flip_y))
            })
        }

        /// Decodes toggles like a device does.
        fn from_toggles(toggles: &[i32], (w, h): (u32, u32)) -> Self {
            Self::new(w, h, |x, y| toggles.iter().filter(|&&t| t <= (y * w + x) as i32).count() % 2 == 1)
        }
    }

    fn draw(mask: &Segmentation, source: (u32, u32), window: &Window, width: u32, s: &mut MaskScratch) -> Vec<i32> {
        let mut map = MaskMap::default();
        map.set(source, window);
        let mut out = vec![-7; 4096];
        let n = s.draw(mask, &map, width, &mut out);
        assert!(out[n..].iter().all(|&v| v == -7), "nothing behind");
        if n > 0 {
            let mut short = vec![-7; n - 1];
            assert_eq!(s.draw(mask, &map, width, &mut short), n, "too small: how many there are");
            assert!(short.iter().all(|&v| v == -7));
        }
        out.truncate(n);
        let pairs = out.as_chunks::<2>().0;
        assert!(n.is_multiple_of(2) && out.is_sorted());
        assert!(pairs.iter().all(|[a, b]| a < b && *a as u32 / width == (*b - 1) as u32 / width), "spans within rows");
        out
    }

    fn window(rng: &mut Rng, (w, h): (u32, u32)) -> Window {
        let whole = [1, w, 2 * w, w.div_ceil(3), 1 + rng.below(70)];
        let resized = (whole[rng.below(5) as usize], [h, 3 * h, 1 + rng.below(70)][rng.below(3) as usize]);
        let mut part = |n: u32| {
            let size = if rng.below(2) == 0 { n } else { 1 + rng.below(n) };
            (rng.below(n - size + 1), size)
        };
        let (x, y) = (part(resized.0), part(resized.1));
        Window { resized, at: (x.0, y.0), size: (x.1, y.1), flip_x: rng.below(2) == 0, flip_y: rng.below(2) == 0 }
    }

    /// Noise of every density, stripes, blobs and empty masks, through random windows, compared with a bitmap.
    #[test]
    fn spans_go_where_pixels_go() {
        let mut rng = Stream::new(2, 0, 0, 0, Purpose::Test).rng();
        let mut scratch = MaskScratch::default();
        for case in 0..3000 {
            let (w, h) = (1 + rng.below(40), 1 + rng.below(40));
            let density = [0.0, 0.1, 0.5, 0.9, 1.0][case % 5];
            let noise: Vec<bool> = (0..w * h).map(|_| rng.uniform() < density).collect();
            let bitmap = match case % 3 {
                0 => Bitmap { w, h, bits: noise },
                1 => Bitmap::new(w, h, |x, y| (x * 7 + y * 3) / 5 % 3 == 0),
                _ => Bitmap::new(w, h, |x, y| (x as f32 - 15.0).hypot(y as f32 - 12.0) < density * 20.0),
            };
            let mask = bitmap.segmentation(&mut scratch);
            assert_eq!(Bitmap::of(&mask, (w, h)), bitmap);
            let window = window(&mut rng, (w, h));
            let canvas = (window.size.0 + rng.below(9), window.size.1 + rng.below(9));
            let toggles = draw(&mask, (w, h), &window, canvas.0, &mut scratch);
            let want = bitmap.transformed(&window, canvas);
            assert_eq!(Bitmap::from_toggles(&toggles, canvas), want, "case {case}: {window:?}");
            let of_row =
                |y: u32| (0..=w).filter(|&x| (x > 0 && bitmap.at(x - 1, y)) != (x < w && bitmap.at(x, y))).count();
            let rows: Vec<usize> = (0..h).map(of_row).chain([0]).collect();
            let falls: usize = rows.windows(2).map(|r| r[0].saturating_sub(r[1])).sum();
            let all = rows.iter().sum::<usize>() as u32;
            assert_eq!(mask.row_toggles(), RowToggles { all, falls: falls as u32 });
        }
    }

    /// One mask at all scales up to the largest, without a crop.
    #[test]
    fn the_bound_holds_at_every_scale() {
        let mut rng = Stream::new(4, 0, 0, 0, Purpose::Test).rng();
        let mut scratch = MaskScratch::default();
        let (mut tightest, mut exact) = (f64::MAX, 0);
        for case in 0..60 {
            let (w, h) = (1 + rng.below(30), 1 + rng.below(50));
            let noise: Vec<bool> = (0..w * h).map(|_| rng.uniform() < [0.02, 0.5, 0.98][case % 3]).collect();
            let mask = Bitmap { w, h, bits: noise }.segmentation(&mut scratch);
            let rows = mask.row_toggles();
            let mut most = 0;
            for to in 1..130 {
                let window =
                    Window { resized: (w, to), at: (0, 0), size: (w, to), flip_x: false, flip_y: case % 2 == 0 };
                most = most.max(draw(&mask, (w, h), &window, w, &mut scratch).len() as u64);
                let bound = most_toggles(u64::from(rows.all), u64::from(rows.falls), u64::from(h), u64::from(to));
                assert!(most <= bound, "{most} {bound} {to}/{h}");
                if to >= h && bound > 0 {
                    tightest = tightest.min(most as f64 / bound as f64);
                    exact += u32::from(bound == most);
                }
            }
        }
        assert!(tightest >= 0.5 && exact > 100, "{tightest} {exact}");
    }

    /// Compares with fixtures of mmcv's `imrescale(interpolation="nearest")`.
    #[test]
    fn resizing_is_that_of_mmcv() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data/masks.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let read = |name: &str, w: u32| {
            let t = tensors.tensor(&format!("{name}.{w}")).unwrap();
            let (h, row) = (t.shape()[0] as u32, t.shape()[1] as u32);
            Bitmap::new(w, h, |x, y| t.data()[(y * row + x / 8) as usize] << (x % 8) & 0x80 != 0)
        };
        let (source, mut scratch) = (read("mask.src", 192), MaskScratch::default());
        let mask = source.segmentation(&mut scratch);
        for (name, width) in [("mask.rescale_448", 448), ("mask.rescale_70x60", 70)] {
            let want = read(name, width);
            let size = (want.w, want.h);
            let window = Window { resized: size, at: (0, 0), size, flip_x: false, flip_y: false };
            let got = draw(&mask, (source.w, source.h), &window, size.0, &mut scratch);
            let rows: Vec<[i32; 2]> = got.as_chunks::<2>().0.to_vec();
            let got = Bitmap::new(want.w, want.h, |x, y| {
                let p = (y * want.w + x) as i32;
                rows.iter().any(|r| (r[0]..r[1]).contains(&p))
            });
            assert_eq!(got.bits, want.bits, "{name}");
        }
    }
}
