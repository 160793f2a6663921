//! Places the shapes of a picture: classes, outlines, sizes, and which shape hides which. Nothing is painted here.

use super::class::Class;
use super::raster::{Coverage, cos_sin, coverage, twice_area};
use super::trace::Mask;
use crate::philox::Rng;

/// Share of a shape's area (outside the image too) that must stay visible when others are put on top of it.
const MIN_VISIBLE: f64 = 0.5;
/// Share of a new shape that must lie inside the image.
const MIN_INSIDE: f64 = 0.62;
/// Pieces below this share of a shape's visible part, or below 5 pixels, are not annotated.
const MIN_PIECE: f64 = 0.05;
/// Number of candidates tried per wanted shape.
const TRIES: u32 = 8;

/// A shape that was placed.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub class: Class,
    pub outline: Vec<[f64; 2]>,
    pub coverage: Coverage,
    pub centre: [f64; 2],
    /// Nominal diameter in pixels.
    pub diameter: f64,
}

/// The shapes of a picture, back to front.
pub(super) struct Scene {
    pub shapes: Vec<Placed>,
    /// For each pixel the index of its frontmost shape, or `NOBODY`.
    owner: Vec<u16>,
    width: usize,
}

const NOBODY: u16 = u16::MAX;

impl Scene {
    /// Places between `count.0` and `count.1` shapes (fewer if there is no room).
    pub fn new(rng: &mut Rng, width: usize, height: usize, count: (u32, u32)) -> Self {
        let mut scene = Scene { shapes: Vec::new(), owner: vec![NOBODY; width * height], width };
        let mut visible: Vec<u32> = Vec::new();
        let mut area: Vec<f64> = Vec::new();
        let wanted = count.0 + rng.below(count.1 - count.0 + 1);
        for _ in 0..wanted * TRIES {
            if scene.shapes.len() as u32 == wanted {
                break;
            }
            let shape = candidate(rng, width, height, &scene.shapes);
            let full = twice_area(&shape.outline).abs() / 2.0;
            let mut hidden = vec![0u32; visible.len()];
            let mut own = 0u32;
            for (x, y, _) in shape.coverage.pixels().filter(|p| p.2 >= 128) {
                own += 1;
                if let Some(h) = hidden.get_mut(scene.owner[y * width + x] as usize) {
                    *h += 1;
                }
            }
            let stays = |i: usize| f64::from(visible[i] - hidden[i]) >= MIN_VISIBLE * area[i];
            let fits = f64::from(own) >= MIN_INSIDE * full && own >= 30;
            if !fits || !(0..visible.len()).all(|i| hidden[i] == 0 || stays(i)) {
                continue;
            }
            for (v, h) in visible.iter_mut().zip(&hidden) {
                *v -= h;
            }
            visible.push(own);
            area.push(full);
            for (x, y, _) in shape.coverage.pixels().filter(|p| p.2 >= 128) {
                scene.owner[y * width + x] = scene.shapes.len() as u16;
            }
            scene.shapes.push(shape);
        }
        scene
    }

    /// The visible part of shape `index`, without scattered specks.
    pub fn visible(&self, index: usize) -> Mask {
        let c = &self.shapes[index].coverage;
        let bits = (0..c.w * c.h)
            .map(|i| usize::from(self.owner[(c.y0 + i / c.w) * self.width + c.x0 + i % c.w]) == index)
            .collect();
        let mut mask = Mask { x0: c.x0, y0: c.y0, w: c.w, h: c.h, bits };
        let least = ((mask.count() as f64 * MIN_PIECE) as usize).max(5);
        for piece in mask.parts().iter().filter(|p| p.count() < least) {
            for (i, _) in piece.bits.iter().enumerate().filter(|(_, b)| **b) {
                let (x, y) = (piece.x0 + i % piece.w, piece.y0 + i / piece.w);
                mask.bits[(y - mask.y0) * mask.w + x - mask.x0] = false;
            }
        }
        mask
    }
}

fn between(rng: &mut Rng, lo: f64, hi: f64) -> f64 {
    lo + (hi - lo) * f64::from(rng.uniform())
}

/// A shape of random class, size, angle and place; one in three lies near or on an earlier shape. Diameters span three
/// octaves, from 1/14 of the short side.
fn candidate(rng: &mut Rng, width: usize, height: usize, earlier: &[Placed]) -> Placed {
    let class = Class::ALL[rng.below(Class::ALL.len() as u32) as usize];
    let octave = [1.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0][rng.below(7) as usize];
    let diameter = width.min(height) as f64 / 14.0 * octave * between(rng, 1.0, 2.0);
    let (c, s) = cos_sin(between(rng, 0.0, 1.0));
    let (mut cx, mut cy) = (between(rng, 0.0, width as f64), between(rng, 0.0, height as f64));
    if !earlier.is_empty() && rng.below(3) == 0 {
        let other = &earlier[rng.below(earlier.len() as u32) as usize];
        let (dx, dy) = cos_sin(between(rng, 0.0, 1.0));
        let away = (diameter + other.diameter) * between(rng, 0.15, 0.5);
        (cx, cy) = (other.centre[0] + away * dx, other.centre[1] + away * dy);
    }
    let outline: Vec<[f64; 2]> = unit_outline(rng, class)
        .iter()
        .map(|p| {
            let (x, y) = (p[0] * diameter / 2.0, p[1] * diameter / 2.0);
            [cx + c * x - s * y, cy + s * x + c * y]
        })
        .collect();
    let coverage = coverage(&outline, width, height);
    Placed { class, outline, coverage, centre: [cx, cy], diameter }
}

/// A random outline of a class around the origin, about 2 wide.
fn unit_outline(rng: &mut Rng, class: Class) -> Vec<[f64; 2]> {
    match class {
        Class::Ellipse => {
            let minor = between(rng, 0.6, 1.0);
            (0..48).map(|i| cos_sin(f64::from(i) / 48.0)).map(|(c, s)| [c, minor * s]).collect()
        }
        Class::Rectangle => {
            let (a, b) = (between(rng, 0.8, 1.0), between(rng, 0.45, 0.85));
            vec![[-a, -b], [a, -b], [a, b], [-a, b]]
        }
        Class::Triangle => {
            let (base, tip) = (between(rng, 0.75, 1.1), between(rng, -0.3, 0.3));
            vec![[tip, -1.0], [base, 0.75], [-base, 0.75]]
        }
        Class::Star => {
            let inner = between(rng, 0.4, 0.52);
            (0..10)
                .map(|i| {
                    let r = if i % 2 == 0 { 1.15 } else { 1.15 * inner };
                    let (c, s) = cos_sin(f64::from(i) / 10.0);
                    [r * c, r * s]
                })
                .collect()
        }
        Class::Cross => {
            let (t, l) = (between(rng, 0.27, 0.4), between(rng, 0.8, 1.05));
            vec![
                [-t, -1.05],
                [t, -1.05],
                [t, -t],
                [l, -t],
                [l, t],
                [t, t],
                [t, 1.05],
                [-t, 1.05],
                [-t, t],
                [-l, t],
                [-l, -t],
                [-t, -t],
            ]
        }
        Class::Crescent => crescent(between(rng, 0.14, 0.18), between(rng, 0.62, 0.78)),
    }
}

/// A disc minus another one. The outer arc is the circle of radius 1.1 outside of ±`gap` turns; the inner arc lies on
/// the circle around (`centre`, 0) through the same two tips.
fn crescent(gap: f64, centre: f64) -> Vec<[f64; 2]> {
    let mut points: Vec<[f64; 2]> = (0..=32)
        .map(|i| cos_sin(gap + (1.0 - 2.0 * gap) * f64::from(i) / 32.0))
        .map(|(c, s)| [1.1 * c, 1.1 * s])
        .collect();
    let (c, s) = cos_sin(-gap);
    let (dx, dy) = (1.1 * c - centre, 1.1 * s);
    let radius = (dx * dx + dy * dy).sqrt();
    // Directions from the lower tip through (-1, 0) to the upper one by repeated bisection: no arc tangent is needed.
    let mut directions = vec![[dx / radius, dy / radius], [-1.0, 0.0], [dx / radius, -dy / radius]];
    for _ in 0..3 {
        let mut finer = Vec::with_capacity(2 * directions.len());
        for pair in directions.windows(2) {
            let (x, y) = (pair[0][0] + pair[1][0], pair[0][1] + pair[1][1]);
            let l = (x * x + y * y).sqrt();
            finer.extend([pair[0], [x / l, y / l]]);
        }
        finer.extend(directions.last().copied());
        directions = finer;
    }
    let inner = &directions[1..directions.len() - 1];
    points.extend(inner.iter().map(|d| [centre + radius * d[0], radius * d[1]]));
    for p in &mut points {
        p[0] += 0.25; // the middle of the body, not of the disc, goes to the origin
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Purpose, Stream};

    #[test]
    fn outlines_are_simple_and_about_as_large_as_said() {
        let mut rng = Stream::new(1, 0, 0, 0, Purpose::Test).rng();
        for class in Class::ALL {
            for _ in 0..50 {
                let p: Vec<[f64; 2]> =
                    unit_outline(&mut rng, class).iter().map(|p| [50.0 + 40.0 * p[0], 50.0 + 40.0 * p[1]]).collect();
                let area = twice_area(&p).abs() / 2.0;
                let covered: f64 = coverage(&p, 120, 120).pixels().map(|c| f64::from(c.2) / 256.0).sum();
                // a self-intersecting outline covers another area than its formula says
                assert!((covered - area).abs() < 0.02 * area, "{class:?}: {covered} against {area}");
                assert!(area > 1100.0 && area < 5100.0, "{class:?}: {area}");
            }
        }
    }

    #[test]
    fn every_shape_stays_visible() {
        for image in 0..200 {
            let mut rng = Stream::new(5, 0, 0, image, Purpose::Test).rng();
            let scene = Scene::new(&mut rng, 200, 150, (3, 10));
            assert!(scene.shapes.len() >= 2);
            for (i, s) in scene.shapes.iter().enumerate() {
                let seen = scene.visible(i).count() as f64;
                assert!(seen >= 0.3 * twice_area(&s.outline).abs() / 2.0, "image {image} shape {i}");
            }
        }
    }
}
