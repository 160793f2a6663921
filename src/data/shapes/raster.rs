//! Polygons to pixels: anti-aliased coverage, and masks by pixel centres. Uses only sums, products, quotients and
//! floors of IEEE numbers, so that the result is the same on every machine.

/// Sub-scanlines per pixel row.
const SUBROWS: usize = 4;
/// Horizontal steps per pixel; full coverage is `SUBROWS * SUBCOLS`.
const SUBCOLS: i64 = 64;

/// Cosine and sine of an angle in full turns, by Taylor series on an eighth of a turn. The last bit of libm's results
/// differs between machines; these results do not.
pub(crate) fn cos_sin(turns: f64) -> (f64, f64) {
    let t = (turns - turns.floor()) * 8.0;
    let octant = t.floor();
    let odd = octant % 2.0 == 1.0;
    let a = (if odd { octant + 1.0 - t } else { t - octant }) * (std::f64::consts::PI / 4.0);
    let b = a * a;
    let (mut sin, mut cos, mut term) = (0.0, 0.0, 1.0);
    for k in 0..9 {
        let even = f64::from(2 * k);
        cos += term;
        sin += term * a / (even + 1.0);
        term = -term * b / ((even + 1.0) * (even + 2.0));
    }
    match octant as i32 {
        0 => (cos, sin),
        1 => (sin, cos),
        2 => (-sin, cos),
        3 => (-cos, sin),
        4 => (-cos, -sin),
        5 => (-sin, -cos),
        6 => (sin, -cos),
        _ => (cos, -sin),
    }
}

/// Twice the signed area of a polygon (positive if clockwise on the screen, with y down).
pub(crate) fn twice_area(polygon: &[[f64; 2]]) -> f64 {
    let n = polygon.len();
    (0..n).map(|i| (polygon[i], polygon[(i + 1) % n])).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum()
}

/// The pixels that a polygon touches, with the share of each that it covers.
#[derive(Clone, Debug)]
pub(crate) struct Coverage {
    /// First column.
    pub x0: usize,
    /// First row.
    pub y0: usize,
    /// Columns; 0 if the polygon lies outside the image.
    pub w: usize,
    /// Rows; 0 if the polygon lies outside the image.
    pub h: usize,
    /// `h * w` shares, in 1/256.
    pub share: Vec<u16>,
}

impl Coverage {
    /// (x, y, share in 1/256) of each pixel with a non-zero share.
    pub fn pixels(&self) -> impl Iterator<Item = (usize, usize, u16)> + '_ {
        self.share
            .iter()
            .enumerate()
            .filter(|&(_, &s)| s > 0)
            .map(|(i, &s)| (self.x0 + i % self.w, self.y0 + i / self.w, s))
    }
}

/// Even-odd coverage of a closed polygon, clipped to a `width` x `height` image.
pub(crate) fn coverage(polygon: &[[f64; 2]], width: usize, height: usize) -> Coverage {
    let clip = |v: f64, max: usize| v.max(0.0).min(max as f64) as usize; // NaN goes to 0
    let (mut lo, mut hi) = ([f64::MAX; 2], [f64::MIN; 2]);
    for p in polygon {
        for a in 0..2 {
            lo[a] = lo[a].min(p[a]);
            hi[a] = hi[a].max(p[a]);
        }
    }
    let (x0, y0) = (clip(lo[0].floor(), width), clip(lo[1].floor(), height));
    let (x1, y1) = (clip(hi[0].ceil(), width), clip(hi[1].ceil(), height));
    let (w, h) = (x1.saturating_sub(x0), y1.saturating_sub(y0));
    if w == 0 || h == 0 || polygon.iter().flatten().any(|v| !v.is_finite()) {
        return Coverage { x0, y0, w: 0, h: 0, share: Vec::new() };
    }
    let mut share = vec![0u16; w * h];
    let mut crossings: Vec<i64> = Vec::with_capacity(16);
    for (row, line) in share.chunks_exact_mut(w).enumerate() {
        for s in 0..SUBROWS {
            let y = (y0 + row) as f64 + (s as f64 + 0.5) / SUBROWS as f64;
            crossings.clear();
            each_crossing(polygon, y, |x| {
                let fixed = ((x - x0 as f64) * SUBCOLS as f64 + 0.5).floor();
                crossings.push(fixed.clamp(0.0, (w as i64 * SUBCOLS) as f64) as i64);
            });
            crossings.sort_unstable();
            for span in crossings.chunks_exact(2) {
                add_span(line, span[0], span[1]);
            }
        }
    }
    Coverage { x0, y0, w, h, share }
}

/// Calls `f` with the x of each edge that crosses the horizontal line `y`.
fn each_crossing(polygon: &[[f64; 2]], y: f64, mut f: impl FnMut(f64)) {
    let mut a = polygon[polygon.len() - 1];
    for &b in polygon {
        if (a[1] <= y) != (b[1] <= y) {
            f(a[0] + (b[0] - a[0]) * ((y - a[1]) / (b[1] - a[1])));
        }
        a = b;
    }
}

/// Adds the coverage of one sub-scanline between two positions in 1/[`SUBCOLS`] pixels.
fn add_span(line: &mut [u16], from: i64, to: i64) {
    let (first, last) = (from / SUBCOLS, to / SUBCOLS);
    if from >= to {
        return;
    }
    if first == last {
        line[first as usize] += (to - from) as u16;
        return;
    }
    line[first as usize] += (SUBCOLS - from % SUBCOLS) as u16;
    for v in &mut line[first as usize + 1..last as usize] {
        *v += SUBCOLS as u16;
    }
    if to % SUBCOLS > 0 {
        line[last as usize] += (to % SUBCOLS) as u16;
    }
}

/// The pixels whose centre is in one of the polygons (even-odd rule in each), as a `height` x `width` mask whose
/// top-left pixel is (`x0`, `y0`).
pub(crate) fn centre_mask(polygons: &[Vec<[f64; 2]>], x0: usize, y0: usize, width: usize, height: usize) -> Vec<bool> {
    let mut mask = vec![false; width * height];
    let mut crossings: Vec<f64> = Vec::new();
    for polygon in polygons.iter().filter(|p| !p.is_empty()) {
        for (row, line) in mask.chunks_exact_mut(width).enumerate() {
            crossings.clear();
            each_crossing(polygon, (y0 + row) as f64 + 0.5, |x| crossings.push(x - x0 as f64));
            crossings.sort_unstable_by(f64::total_cmp);
            for span in crossings.chunks_exact(2) {
                // a centre c + 0.5 is inside if span[0] <= c + 0.5 < span[1]
                let from = (span[0] - 0.5).ceil().max(0.0) as usize;
                let to = ((span[1] - 0.5).ceil().max(0.0) as usize).min(width);
                if from < to {
                    line[from..to].fill(true);
                }
            }
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cos_sin_is_cosine_and_sine() {
        for i in -50..150 {
            let t = f64::from(i) / 97.0;
            let (c, s) = cos_sin(t);
            let a = t * std::f64::consts::TAU;
            assert!((c - a.cos()).abs() < 1e-14 && (s - a.sin()).abs() < 1e-14, "{t}: {c} {s}");
        }
    }

    #[test]
    fn coverage_of_a_rectangle_is_its_area_in_each_pixel() {
        let c = coverage(&[[1.5, 1.0], [4.25, 1.0], [4.25, 2.5], [1.5, 2.5]], 10, 10);
        assert_eq!((c.x0, c.y0, c.w, c.h), (1, 1, 4, 2));
        assert_eq!(c.share, vec![128, 256, 256, 64, 64, 128, 128, 32]);
    }

    #[test]
    fn coverage_sums_to_the_area_of_a_concave_polygon_and_is_clipped() {
        let star: Vec<[f64; 2]> = (0..10)
            .map(|i| {
                let (c, s) = cos_sin(f64::from(i) / 10.0);
                let r = if i % 2 == 0 { 30.0 } else { 12.0 };
                [40.3 + r * c, 41.7 + r * s]
            })
            .collect();
        let area = twice_area(&star).abs() / 2.0;
        let sum = |c: &Coverage| c.share.iter().map(|&s| f64::from(s)).sum::<f64>() / 256.0;
        assert!((sum(&coverage(&star, 100, 100)) - area).abs() < 0.01 * area);
        let half = coverage(&star, 40, 100);
        assert!(half.x0 + half.w <= 40 && sum(&half) < 0.6 * area && sum(&half) > 0.4 * area);
        assert!(coverage(&star, 5, 5).share.is_empty());
        assert!(coverage(&[[f64::NAN, 0.0], [3.0, 0.0], [0.0, 3.0]], 5, 5).share.is_empty());
    }

    #[test]
    fn centre_mask_of_pixel_edges_is_exact() {
        let l = vec![[1.0, 1.0], [4.0, 1.0], [4.0, 2.0], [2.0, 2.0], [2.0, 4.0], [1.0, 4.0]];
        let m = centre_mask(&[l], 0, 0, 5, 5);
        let rows: Vec<String> = m.chunks(5).map(|r| r.iter().map(|&b| if b { '#' } else { '.' }).collect()).collect();
        assert_eq!(rows, [".....", ".###.", ".#...", ".#...", "....."]);
    }
}
