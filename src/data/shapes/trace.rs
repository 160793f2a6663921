//! Masks to polygons: finds connected parts, cuts parts with holes in two (COCO polygons have no holes), follows
//! outlines along pixel edges, and simplifies them so that the intersection over union with the mask is at least
//! [`MIN_IOU`].

use super::raster::{centre_mask, twice_area};

/// Smallest intersection over union of the mask with its polygons, rasterised by pixel centres.
pub(crate) const MIN_IOU: f64 = 0.97;

/// Tolerances in pixels that the simplification tries; 0 keeps every corner and is exact.
const TOLERANCES: [f64; 5] = [0.9, 0.7, 0.5, 0.36, 0.0];

/// A set of pixels of an image, as a `w` x `h` window whose top-left pixel is (`x0`, `y0`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mask {
    pub x0: usize,
    pub y0: usize,
    pub w: usize,
    pub h: usize,
    pub bits: Vec<bool>,
}

impl Mask {
    /// Number of pixels in the mask.
    pub fn count(&self) -> usize {
        self.bits.iter().filter(|&&b| b).count()
    }

    /// Bounding box `[x0, y0, x1, y1]` of the pixels, exclusive at the end. None if there is no pixel.
    pub fn bounds(&self) -> Option<[usize; 4]> {
        let mut b = [usize::MAX, usize::MAX, 0, 0];
        for (i, _) in self.bits.iter().enumerate().filter(|&(_, &v)| v) {
            let (x, y) = (self.x0 + i % self.w, self.y0 + i / self.w);
            b = [b[0].min(x), b[1].min(y), b[2].max(x + 1), b[3].max(y + 1)];
        }
        (b[2] > 0).then_some(b)
    }

    fn at(&self, x: isize, y: isize) -> bool {
        x >= 0
            && y >= 0
            && (x as usize) < self.w
            && (y as usize) < self.h
            && self.bits[y as usize * self.w + x as usize]
    }

    fn with(&self, bits: Vec<bool>) -> Mask {
        Mask { bits, ..*self }
    }

    /// The 4-connected parts, in the order of their first pixels, each in a window of its own size.
    pub fn parts(&self) -> Vec<Mask> {
        let (w, h) = (self.w, self.h);
        let mut left = self.bits.clone();
        let mut parts = Vec::new();
        for start in 0..left.len() {
            if !left[start] {
                continue;
            }
            left[start] = false;
            let mut pixels = vec![start];
            let mut next = 0;
            while let Some(&i) = pixels.get(next) {
                next += 1;
                let (x, y) = (i % w, i / w);
                for (inside, j) in
                    [(x > 0, i.wrapping_sub(1)), (x + 1 < w, i + 1), (y > 0, i.wrapping_sub(w)), (y + 1 < h, i + w)]
                {
                    if inside && left[j] {
                        left[j] = false;
                        pixels.push(j);
                    }
                }
            }
            let (x0, x1) = pixels.iter().fold((w, 0), |m, i| (m.0.min(i % w), m.1.max(i % w)));
            let (y0, y1) = pixels.iter().fold((h, 0), |m, i| (m.0.min(i / w), m.1.max(i / w)));
            let (pw, ph) = (x1 - x0 + 1, y1 - y0 + 1);
            let mut bits = vec![false; pw * ph];
            for i in pixels {
                bits[(i / w - y0) * pw + i % w - x0] = true;
            }
            parts.push(Mask { x0: self.x0 + x0, y0: self.y0 + y0, w: pw, h: ph, bits });
        }
        parts
    }

    /// First and last column of the first hole. A hole is background without an 8-connected path to the outside.
    fn hole(&self) -> Option<(usize, usize)> {
        let (w, h) = (self.w + 2, self.h + 2); // a frame of background
        let free = |i: usize| !self.at((i % w) as isize - 1, (i / w) as isize - 1);
        let mut seen = vec![false; w * h];
        let fill = |start: usize, seen: &mut Vec<bool>| {
            let (mut stack, mut lo, mut hi) = (vec![start], usize::MAX, 0);
            seen[start] = true;
            while let Some(i) = stack.pop() {
                let (x, y) = (i % w, i / w);
                lo = lo.min(x);
                hi = hi.max(x);
                for ny in y.saturating_sub(1)..(y + 2).min(h) {
                    for nx in x.saturating_sub(1)..(x + 2).min(w) {
                        let j = ny * w + nx;
                        if free(j) && !seen[j] {
                            seen[j] = true;
                            stack.push(j);
                        }
                    }
                }
            }
            (lo, hi)
        };
        fill(0, &mut seen);
        let start = (0..w * h).find(|&i| free(i) && !seen[i])?;
        let (lo, hi) = fill(start, &mut seen);
        Some((lo - 1, hi - 1))
    }

    /// Connected parts without holes that make up the mask. A part with a hole is cut along a column through the hole.
    pub fn solid_parts(&self) -> Vec<Mask> {
        let mut done = Vec::new();
        let mut todo = self.parts();
        todo.reverse();
        while let Some(part) = todo.pop() {
            match part.hole() {
                None => done.push(part),
                Some((lo, hi)) => {
                    let cut = (lo + hi).div_ceil(2);
                    let half = |left: bool| {
                        let keep = |(i, &b): (usize, &bool)| b && (i % part.w < cut) == left;
                        part.with(part.bits.iter().enumerate().map(keep).collect())
                    };
                    for side in [half(false), half(true)] {
                        todo.extend(side.parts().into_iter().rev());
                    }
                }
            }
        }
        done
    }

    /// Corners of the outline of a 4-connected mask without holes, clockwise, in image coordinates (pixel edges).
    pub fn outline(&self) -> Vec<[f64; 2]> {
        const STEP: [(isize, isize); 4] = [(1, 0), (0, 1), (-1, 0), (0, -1)]; // right, down, left, up
        // For a walker at a corner, looking along each direction: the pixels ahead, on its right and on its left.
        const AHEAD_RIGHT: [(isize, isize); 4] = [(0, 0), (-1, 0), (-1, -1), (0, -1)];
        const AHEAD_LEFT: [(isize, isize); 4] = [(0, -1), (0, 0), (-1, 0), (-1, -1)];
        let Some(first) = self.bits.iter().position(|&b| b) else { return Vec::new() };
        let start = ((first % self.w) as isize, (first / self.w) as isize);
        let (mut x, mut y) = start;
        let mut d = 0; // along the top edge of the first pixel, mask on the right
        let mut corners = vec![[(self.x0 as isize + x) as f64, (self.y0 as isize + y) as f64]];
        loop {
            x += STEP[d].0;
            y += STEP[d].1;
            if (x, y) == start {
                return corners;
            }
            let turn = if !self.at(x + AHEAD_RIGHT[d].0, y + AHEAD_RIGHT[d].1) {
                1 // right turn before left turn, so that pixels that only touch at a corner are not joined
            } else if self.at(x + AHEAD_LEFT[d].0, y + AHEAD_LEFT[d].1) {
                3
            } else {
                continue;
            };
            d = (d + turn) % 4;
            corners.push([(self.x0 as isize + x) as f64, (self.y0 as isize + y) as f64]);
        }
    }

    /// Polygons without holes for the mask, with as few corners as [`MIN_IOU`] allows.
    pub fn polygons(&self) -> Vec<Vec<[f64; 2]>> {
        let exact: Vec<Vec<[f64; 2]>> = self.solid_parts().iter().map(Mask::outline).collect();
        for tolerance in TOLERANCES {
            let polygons: Vec<Vec<[f64; 2]>> = exact.iter().map(|p| simplify(p, tolerance)).collect();
            let proper = polygons.iter().all(|p| p.len() >= 3 && twice_area(p) > 0.0);
            if proper && self.iou(&polygons) >= MIN_IOU {
                return polygons;
            }
        }
        exact
    }

    /// Intersection over union of the mask with polygons that are rasterised by pixel centres.
    pub fn iou(&self, polygons: &[Vec<[f64; 2]>]) -> f64 {
        let other = centre_mask(polygons, self.x0, self.y0, self.w, self.h);
        let both = self.bits.iter().zip(&other).filter(|&(&a, &b)| a && b).count();
        let any = self.bits.iter().zip(&other).filter(|&(&a, &b)| a || b).count();
        both as f64 / any.max(1) as f64
    }
}

/// Douglas and Peucker 1973 on a closed line. Every removed corner is within `tolerance` of the new outline.
fn simplify(corners: &[[f64; 2]], tolerance: f64) -> Vec<[f64; 2]> {
    if tolerance <= 0.0 || corners.len() <= 4 {
        return corners.to_vec();
    }
    let far = |from: usize| {
        let d = |i: usize| {
            let (dx, dy) = (corners[i][0] - corners[from][0], corners[i][1] - corners[from][1]);
            dx * dx + dy * dy
        };
        (0..corners.len()).fold(from, |best, i| if d(i) > d(best) { i } else { best })
    };
    let b = far(0);
    let a = far(b); // two opposite ends, which do not depend on the first corner
    let n = corners.len();
    let mut keep = vec![false; n];
    keep[a] = true;
    keep[b] = true;
    let mut todo = vec![(a, (b + n - a) % n), (b, (a + n - b) % n)]; // (first, steps to the last)
    while let Some((first, steps)) = todo.pop() {
        let (p, q) = (corners[first], corners[(first + steps) % n]);
        let (mut worst, mut at) = (0.0, 0);
        for k in 1..steps {
            let d = distance_squared(corners[(first + k) % n], p, q);
            if d > worst {
                (worst, at) = (d, k);
            }
        }
        if worst > tolerance * tolerance {
            keep[(first + at) % n] = true;
            todo.push((first, at));
            todo.push(((first + at) % n, steps - at));
        }
    }
    corners.iter().zip(&keep).filter(|&(_, &k)| k).map(|(&c, _)| c).collect()
}

/// Squared distance of point `c` from the segment from `p` to `q`.
pub(crate) fn distance_squared(c: [f64; 2], p: [f64; 2], q: [f64; 2]) -> f64 {
    let (dx, dy) = (q[0] - p[0], q[1] - p[1]);
    let length = dx * dx + dy * dy;
    let t = if length > 0.0 { (((c[0] - p[0]) * dx + (c[1] - p[1]) * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
    let (ex, ey) = (c[0] - p[0] - t * dx, c[1] - p[1] - t * dy);
    ex * ex + ey * ey
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Purpose, Stream};

    fn mask(rows: &[&str]) -> Mask {
        let bits = rows.iter().flat_map(|r| r.bytes().map(|b| b == b'#')).collect();
        Mask { x0: 3, y0: 2, w: rows[0].len(), h: rows.len(), bits }
    }

    #[test]
    fn outline_of_an_l_runs_clockwise_along_pixel_edges() {
        let m = mask(&["#..", "#..", "###"]);
        assert_eq!(m.outline(), [[3.0, 2.0], [4.0, 2.0], [4.0, 4.0], [6.0, 4.0], [6.0, 5.0], [3.0, 5.0]]);
        assert_eq!(twice_area(&m.outline()), 10.0);
        assert_eq!(m.bounds(), Some([3, 2, 6, 5]));
        assert!(mask(&["..", ".."]).bounds().is_none() && mask(&[".."]).polygons().is_empty());
    }

    #[test]
    fn pixels_that_touch_at_a_corner_are_two_parts() {
        let m = mask(&["##..", "##..", "..##", "..##"]);
        assert_eq!(m.parts().len(), 2);
        assert_eq!(m.iou(&m.polygons()), 1.0);
        // joined elsewhere: one part, whose outline passes the touching corner twice and encloses the same pixels
        let m = mask(&["####", "#..#", "##.#", "..##"]);
        let outlines: Vec<_> = m.solid_parts().iter().map(Mask::outline).collect();
        assert_eq!(m.iou(&outlines), 1.0);
    }

    #[test]
    fn a_ring_is_cut_into_parts_without_holes() {
        let m = mask(&["#####", "#...#", "#.#.#", "#...#", "#####"]);
        let parts = m.solid_parts();
        assert!(parts.iter().all(|p| p.hole().is_none()));
        assert_eq!(parts.iter().map(Mask::count).sum::<usize>(), m.count());
        assert!(m.iou(&m.polygons()) >= MIN_IOU);
        let one = mask(&["###", "#.#", "###"]);
        assert_eq!(one.iou(&one.polygons()), 1.0);
    }

    #[test]
    fn random_masks_come_back() {
        for image in 0..300 {
            let mut r = Stream::new(1, 0, 0, image, Purpose::Test).rng();
            let (w, h) = (1 + r.below(14) as usize, 1 + r.below(14) as usize);
            let density = r.uniform();
            let m = Mask { x0: 5, y0: 7, w, h, bits: (0..w * h).map(|_| r.uniform() < density).collect() };
            let exact: Vec<_> = m.solid_parts().iter().map(Mask::outline).collect();
            let area: f64 = exact.iter().map(|p| twice_area(p) / 2.0).sum();
            assert_eq!(area, m.count() as f64);
            if m.count() > 0 {
                assert_eq!(m.iou(&exact), 1.0);
                assert!(m.iou(&m.polygons()) >= MIN_IOU);
            }
        }
    }

    #[test]
    fn simplification_removes_the_stairs_of_a_disc() {
        let bits = (0..40 * 40)
            .map(|i| {
                let (dx, dy) = ((i % 40) as f64 - 19.5, (i / 40) as f64 - 19.5);
                dx * dx + dy * dy < 340.0
            })
            .collect();
        let m = Mask { x0: 0, y0: 0, w: 40, h: 40, bits };
        let (stairs, polygons) = (m.outline().len(), m.polygons());
        assert_eq!(polygons.len(), 1);
        assert!(polygons[0].len() < 40 && stairs > 60, "{} of {stairs}", polygons[0].len());
    }
}
