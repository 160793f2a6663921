//! Masks of detections in pixels of the original picture: pastes the mask head's small map into the box. This is host
//! code, because the sizes differ from picture to picture.

use hotcoco::Rle;

/// Pastes the map `prob` (`size` rows and columns of probabilities) into a picture of `width`×`height`: returns the
/// pixels where the map, stretched over `bbox` (x0 y0 x1 y1 in pixels), is at least `threshold`. The map is sampled
/// bilinearly at pixel centres and is 0 outside. Only the box and a margin of one pixel are sampled; a side of length 0
/// samples the map's middle.
///
/// The result is COCO's run-length encoding, column by column; no full-size mask is allocated.
/// `hotcoco::mask::rle_to_string` converts it to COCO's text form.
///
/// Cost: one decision for each cell of the map whose four corners lie on one side of the threshold, one interpolation
/// for each pixel of the other cells.
/// Reference: mmdetection's `_do_paste_mask` with `skip_empty`, as on a CPU (`grid_sample`, zero padding, align_corners
/// off), in the same f32 arithmetic.
///
/// # Panics
/// If `prob` does not have `size`² elements, or if the picture has 2^32 pixels or more: both are errors of the caller.
pub fn paste(prob: &[f32], size: usize, bbox: [f32; 4], width: usize, height: usize, threshold: f32) -> Rle {
    assert_eq!(prob.len(), size * size, "paste: a map of {size} x {size}");
    assert!(u32::try_from(width * height).is_ok(), "paste: a picture of {width} x {height} pixels");
    let mut runs = Runs { height, toggles: Vec::new() };
    let (cols, rows) = (Axis::new(bbox[0], bbox[2], width, size), Axis::new(bbox[1], bbox[3], height, size));
    let ((col_cells, col_weights), (row_cells, row_weights)) = (cols.cells(), rows.cells());
    let at = |row: isize, col: isize| -> f32 {
        let inside = |v: isize| (0..size as isize).contains(&v);
        if inside(row) && inside(col) { prob[row as usize * size + col as usize] } else { 0.0 }
    };
    let mut spans: Vec<(Span, usize, usize)> = Vec::new();
    for (left, x0, x1) in col_cells {
        spans.clear();
        spans.extend(row_cells.iter().map(|&(top, from, to)| {
            let corners = [at(top, left), at(top, left + 1), at(top + 1, left), at(top + 1, left + 1)];
            (Span::new(corners, threshold), from, to)
        }));
        for x in x0..x1 {
            let (e, w) = col_weights[x - cols.first];
            for &(span, from, to) in &spans {
                match span {
                    Span::Set => runs.push(x, from, to),
                    Span::Clear => {}
                    Span::Mixed([nw, ne, sw, se]) => {
                        for (y, &(s, n)) in (from..to).zip(&row_weights[from - rows.first..]) {
                            if nw * (e * s) + ne * (w * s) + sw * (e * n) + se * (w * n) >= threshold {
                                runs.push(x, y, y + 1);
                            }
                        }
                    }
                }
            }
        }
    }
    runs.finish(width)
}

/// The decision about all pixels that lie between four neighbouring cells of the map.
#[derive(Clone, Copy)]
enum Span {
    Set,
    Clear,
    /// Upper left, upper right, lower left, lower right.
    Mixed([f32; 4]),
}

impl Span {
    fn new(corners: [f32; 4], threshold: f32) -> Span {
        let (low, high) = corners.iter().fold((corners[0], corners[0]), |(low, high), &v| (low.min(v), high.max(v)));
        // An interpolated value lies between the corners, except for a few rounding errors, which the margin covers.
        // A NaN corner makes both comparisons false: `Mixed`.
        let margin = 1e-6 * corners.iter().map(|v| v.abs()).sum::<f32>();
        if low - margin >= threshold {
            Span::Set
        } else if high + margin < threshold {
            Span::Clear
        } else {
            Span::Mixed(corners)
        }
    }
}

/// A cell of the map, and the range of pixels (from, to) that lie between it and the next cell.
type Cell = (isize, usize, usize);

/// The mapping from pixels of the picture to cells of the map along one axis.
struct Axis {
    lo: f32,
    side: f32,
    size: usize,
    /// Sampled pixels: `first..end`.
    first: usize,
    end: usize,
}

impl Axis {
    fn new(lo: f32, hi: f32, pixels: usize, size: usize) -> Axis {
        // NaN becomes 0 here; `cells` drops these pixels, because their place is NaN too.
        let first = (lo.floor() - 1.0).max(0.0) as usize;
        let end = ((hi.ceil() + 1.0).max(0.0) as usize).min(pixels);
        Axis { lo, side: hi - lo, size, first: first.min(end), end }
    }

    /// The first of the two cells of the map that pixel `p` lies between, and the weights of the first and the second
    /// cell.
    fn place(&self, p: usize) -> (isize, f32, f32) {
        let at = (p as f32 + 0.5 - self.lo) / self.side * 2.0 - 1.0;
        let at = if at.is_infinite() { 0.0 } else { at };
        let v = (at + 1.0) * (self.size as f32 / 2.0) - 0.5;
        let low = v.floor();
        let second = v - low;
        (low.clamp(-2.0, self.size as f32) as isize, 1.0 - second, second) // clamped: all cells outside the map are 0
    }

    /// Groups the sampled pixels by the first of their two cells, (cell, from, to), without pixels whose place is NaN.
    /// Also returns the weights of all pixels.
    fn cells(&self) -> (Vec<Cell>, Vec<(f32, f32)>) {
        let (mut cells, mut weights): (Vec<Cell>, Vec<_>) = Default::default();
        for p in self.first..self.end {
            let (cell, first, second) = self.place(p);
            weights.push((first, second));
            if first.is_nan() {
                continue;
            }
            match cells.last_mut() {
                Some(last) if last.0 == cell && last.2 == p => last.2 = p + 1,
                _ => cells.push((cell, p, p + 1)),
            }
        }
        (cells, weights)
    }
}

/// A mask as the ascending pixel positions (column by column) where it toggles.
struct Runs {
    height: usize,
    toggles: Vec<usize>,
}

impl Runs {
    /// Appends the rows `from..to` of column `x`.
    fn push(&mut self, x: usize, from: usize, to: usize) {
        let (from, to) = (x * self.height + from, x * self.height + to);
        if self.toggles.last() == Some(&from) {
            self.toggles.pop();
        } else {
            self.toggles.push(from);
        }
        self.toggles.push(to);
    }

    fn finish(mut self, width: usize) -> Rle {
        let all = self.height * width;
        // The last run of COCO's encoding ends with the picture. It is never empty, unless the picture is.
        if self.toggles.last() != Some(&all) {
            self.toggles.push(all);
        }
        let starts = std::iter::once(&0).chain(&self.toggles);
        let counts = starts.zip(&self.toggles).map(|(from, to)| (to - from) as u32).collect();
        Rle { h: self.height as u32, w: width as u32, counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::common::testing::{OpFixture, uniform};

    /// The reference for `paste`, row by row: evaluates the formula at every sampled pixel.
    fn naive(prob: &[f32], size: usize, bbox: [f32; 4], width: usize, height: usize, threshold: f32) -> Vec<u8> {
        let mut mask = vec![0; width * height];
        let inside = |p: usize, lo: f32, hi: f32| p as f32 >= lo.floor() - 1.0 && (p as f32) < hi.ceil() + 1.0;
        for (i, out) in mask.iter_mut().enumerate() {
            let (x, y) = (i % width, i / width);
            if !inside(x, bbox[0], bbox[2]) || !inside(y, bbox[1], bbox[3]) {
                continue;
            }
            let place = |p: usize, lo: f32, hi: f32| {
                let at = (p as f32 + 0.5 - lo) / (hi - lo) * 2.0 - 1.0;
                let at = if at.is_infinite() { 0.0 } else { at };
                (at + 1.0) * (size as f32 / 2.0) - 0.5
            };
            let (px, py) = (place(x, bbox[0], bbox[2]), place(y, bbox[1], bbox[3]));
            let at = |dy: f32, dx: f32| {
                let (row, col) = (py.floor() + dy, px.floor() + dx);
                let in_map = |v: f32| v >= 0.0 && v < size as f32;
                if in_map(row) && in_map(col) { prob[row as usize * size + col as usize] } else { 0.0 }
            };
            let (w, n) = (px - px.floor(), py - py.floor());
            let (e, s) = (1.0 - w, 1.0 - n);
            let value =
                at(0.0, 0.0) * (e * s) + at(0.0, 1.0) * (w * s) + at(1.0, 0.0) * (e * n) + at(1.0, 1.0) * (w * n);
            *out = (value >= threshold).into();
        }
        mask
    }

    /// Decodes runs to a mask, row by row.
    fn pixels(rle: &Rle) -> Vec<u8> {
        assert_eq!(rle.counts.iter().sum::<u32>(), rle.h * rle.w, "{rle:?}");
        assert!(rle.counts.iter().skip(1).all(|&n| n > 0), "an empty run: {rle:?}");
        let (columns, h, w) = (hotcoco::mask::decode(rle), rle.h as usize, rle.w as usize);
        assert_eq!(*rle, hotcoco::mask::encode(&columns, rle.h, rle.w).expect("runs"), "not COCO's canonical runs");
        (0..h * w).map(|i| columns[i % w * h + i / w]).collect()
    }

    #[test]
    fn equals_mmdetection() {
        let f = OpFixture::open("masks");
        let (maps, boxes, bytes) =
            (f.f32("paste.masks"), f.f32("paste.boxes"), f.u8("paste.bin_cpu_skip_empty_packed"));
        let (h, w) = (94, 120);
        for (i, bbox) in boxes.chunks_exact(4).enumerate() {
            let rle = paste(&maps[i * 784..][..784], 28, bbox.try_into().expect("a box"), w, h, 0.5);
            let want = |p: usize| bytes[(i * h * w + p) / 8] >> (7 - (i * h * w + p) % 8) & 1;
            let wrong = pixels(&rle).iter().enumerate().filter(|&(p, &v)| v != want(p)).count();
            assert_eq!(wrong, 0, "box {i}: {bbox:?}");
        }
    }

    #[test]
    fn equals_the_definition() {
        let boxes = [
            [3.0, 4.0, 50.0, 30.0],
            [-20.5, -10.25, 90.0, 70.5], // beyond the picture on all sides
            [10.0, 5.5, 10.0, 20.0],     // no width
            [10.5, 5.0, 10.5, 5.0],      // no size, on a pixel's centre: NaN
            [12.25, 7.75, 12.75, 8.0],   // within a pixel
            [70.0, 50.0, 90.0, 80.0],    // outside
            [-30.0, -30.0, -5.0, -5.0],  // outside
            [40.0, 30.0, 20.0, 10.0],    // inverted
            [0.0, 0.0, 64.0, 48.0],
            [f32::NAN, 0.0, 20.0, 20.0],
            [0.0, 0.0, f32::INFINITY, 20.0],
        ];
        for (size, seed) in [(28, 1), (7, 2), (1, 3)] {
            let mut prob = uniform(seed, size * size, 0.0, 1.0);
            prob.iter_mut().step_by(5).for_each(|p| *p = 0.5); // on the threshold
            for bbox in boxes {
                for threshold in [0.5, 0.05, 0.9] {
                    let got = pixels(&paste(&prob, size, bbox, 64, 48, threshold));
                    assert!(got == naive(&prob, size, bbox, 64, 48, threshold), "{size} {bbox:?} {threshold}");
                }
            }
        }
        let full = pixels(&paste(&[1.0; 784], 28, [0.0, 0.0, 20.0, 10.0], 20, 10, 0.5));
        assert!(full.iter().all(|&v| v == 1), "one run from end to end");
        assert_eq!(paste(&[0.0; 784], 28, [0.0, 0.0, 9.0, 9.0], 9, 9, 0.5).counts, [81]);
        assert_eq!(paste(&[1.0; 4], 2, [0.0; 4], 0, 0, 0.5), hotcoco::mask::encode(&[], 0, 0).expect("no runs"));
    }

    /// Prints the time of 100 detections.
    #[test]
    fn a_hundred_detections() {
        let disc = |i: usize| {
            let (y, x) = ((i / 28) as f32 - 13.5, (i % 28) as f32 - 13.5);
            1.0 / (1.0 + ((x * x + y * y).sqrt() - 11.0).exp())
        };
        let prob: Vec<f32> = (0..784).map(disc).collect();
        let u = uniform(4, 400, 0.0, 1.0);
        for (name, scale) in [("of all sizes", 1.0), ("as large as the picture", 0.0)] {
            let start = std::time::Instant::now();
            let mut area = 0;
            for u in u.chunks_exact(4) {
                let (w, h) = (640.0 * (1.0 - scale * u[2]), 480.0 * (1.0 - scale * u[3]));
                let (x, y) = ((640.0 - w) * u[0], (480.0 - h) * u[1]);
                area += hotcoco::mask::area(&paste(&prob, 28, [x, y, x + w, y + h], 640, 480, 0.5));
            }
            println!("100 detections {name}, 640 x 480: {:.1} ms, {area} pixels", start.elapsed().as_secs_f64() * 1e3);
        }
    }
}
