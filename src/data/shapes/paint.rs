//! Paints a scene: background, objects of no class, the shapes' colours and textures, light and noise. All arithmetic
//! is plain IEEE f32 without libm, so that the bytes are the same on every machine.

use super::raster::{Coverage, cos_sin, coverage};
use super::scene::Placed;
use super::trace::distance_squared;
use crate::philox::{Rng, Stream};

type Colour = [f32; 3];

/// An unfinished picture: `h * w` pixels of red, green and blue in 0..=255.
pub(super) struct Canvas {
    w: usize,
    h: usize,
    pixels: Vec<Colour>,
}

/// `a` for t = 0, `b` for t = 1.
fn mix(a: Colour, b: Colour, t: f32) -> Colour {
    std::array::from_fn(|i| a[i] + (b[i] - a[i]) * t)
}

fn distance(a: Colour, b: Colour) -> f32 {
    (0..3).map(|i| (a[i] - b[i]) * (a[i] - b[i])).sum::<f32>().sqrt()
}

/// A colour of random hue, with saturation and value from the given ranges.
fn colour(rng: &mut Rng, saturation: (f32, f32), value: (f32, f32)) -> Colour {
    let hue = rng.range(0.0, 6.0);
    let (s, v) = (rng.range(saturation.0, saturation.1), 255.0 * rng.range(value.0, value.1));
    let f = hue - hue.floor();
    let (p, q, t) = (v * (1.0 - s), v * (1.0 - s * f), v * (1.0 - s * (1.0 - f)));
    match hue as u32 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

/// Smooth noise in 0..=1: interpolated random numbers on a grid with cells of `cell` pixels.
struct Blotches {
    cell: f32,
    columns: usize,
    grid: Vec<f32>,
}

impl Blotches {
    fn new(rng: &mut Rng, w: usize, h: usize, cell: f32) -> Self {
        let columns = (w as f32 / cell) as usize + 3;
        let rows = (h as f32 / cell) as usize + 3;
        Blotches { cell, columns, grid: (0..columns * rows).map(|_| rng.uniform()).collect() }
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        let (u, v) = (x / self.cell, y / self.cell);
        let (i, j) = (u as usize, v as usize);
        let ease = |t: f32| t * t * (3.0 - 2.0 * t);
        let (fu, fv) = (ease(u - i as f32), ease(v - j as f32));
        let k = j * self.columns + i;
        let row = |k: usize| self.grid[k] + (self.grid[k + 1] - self.grid[k]) * fu;
        row(k) + (row(k + self.columns) - row(k)) * fv
    }
}

/// A pattern with values in 0..=1 over the whole picture.
enum Texture {
    Plain,
    Gradient { direction: [f32; 2], offset: f32, scale: f32 },
    Stripes { direction: [f32; 2], period: f32, share: f32 },
    Checks { direction: [f32; 2], period: f32 },
    Dots { direction: [f32; 2], period: f32 },
    Blotches(Blotches),
}

impl Texture {
    /// A random pattern for an area of `size` pixels around (`cx`, `cy`).
    fn random(rng: &mut Rng, w: usize, h: usize, cx: f32, cy: f32, size: f32) -> Self {
        let (c, s) = cos_sin(f64::from(rng.uniform()));
        let direction = [c as f32, s as f32];
        let period = (size * rng.range(0.14, 0.4)).clamp(3.0, 18.0);
        match rng.below(6) {
            0 => Texture::Plain,
            1 => {
                let offset = direction[0] * cx + direction[1] * cy - size / 2.0;
                Texture::Gradient { direction, offset, scale: 1.0 / size }
            }
            2 => Texture::Stripes { direction, period, share: rng.range(0.35, 0.65) },
            3 => Texture::Checks { direction, period },
            4 => Texture::Dots { direction, period },
            _ => Texture::Blotches(Blotches::new(rng, w, h, period)),
        }
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        let turned = |d: &[f32; 2]| (d[0] * x + d[1] * y, d[0] * y - d[1] * x);
        // a triangle wave of period 1, and a threshold that is softened over about a pixel
        let wave = |v: f32| 2.0 * (v - v.floor() - 0.5).abs();
        let step = |v: f32, period: f32| (v * period * 0.5 + 0.5).clamp(0.0, 1.0);
        match self {
            Texture::Plain => 0.0,
            Texture::Gradient { direction, offset, scale } => ((turned(direction).0 - offset) * scale).clamp(0.0, 1.0),
            Texture::Stripes { direction, period, share } => step(wave(turned(direction).0 / period) - share, *period),
            Texture::Checks { direction, period } => {
                let (u, v) = turned(direction);
                let (a, b) = (wave(u / (2.0 * period)) - 0.5, wave(v / (2.0 * period)) - 0.5);
                let (a, b) = (step(a, 2.0 * period), step(b, 2.0 * period));
                a + b - 2.0 * a * b
            }
            Texture::Dots { direction, period } => {
                let (u, v) = turned(direction);
                let (a, b) = (wave(u / period), wave(v / period));
                step(0.75 - (a * a + b * b).sqrt(), *period)
            }
            Texture::Blotches(b) => (b.at(x, y) * 2.4 - 0.7).clamp(0.0, 1.0),
        }
    }
}

impl Canvas {
    /// The background: two muted colours, mixed by a pattern and by coarse and fine noise.
    pub fn background(rng: &mut Rng, w: usize, h: usize) -> Self {
        let a = colour(rng, (0.05, 0.5), (0.25, 0.85));
        let b = mix(a, colour(rng, (0.05, 0.6), (0.15, 0.95)), rng.range(0.25, 0.6));
        let size = w.min(h) as f32;
        let pattern = Texture::random(rng, w, h, w as f32 / 2.0, h as f32 / 2.0, size);
        let (strong, weak) = (rng.range(0.2, 0.55), rng.range(0.2, 0.5));
        let coarse_cell = size * rng.range(0.12, 0.35);
        let coarse = Blotches::new(rng, w, h, coarse_cell);
        let fine_cell = rng.range(3.0, 9.0);
        let fine = Blotches::new(rng, w, h, fine_cell);
        let pixels = (0..w * h)
            .map(|i| {
                let (x, y) = ((i % w) as f32 + 0.5, (i / w) as f32 + 0.5);
                let t = strong * pattern.at(x, y) + (0.9 - strong) * coarse.at(x, y) + weak * (fine.at(x, y) - 0.5);
                mix(a, b, t.clamp(0.0, 1.0))
            })
            .collect();
        Canvas { w, h, pixels }
    }

    /// Adds objects of no class: soft clouds, open strokes, specks.
    pub fn distractors(&mut self, rng: &mut Rng) {
        let size = self.w.min(self.h) as f32;
        for _ in 0..rng.below(5) {
            let (cx, cy) = (rng.range(0.0, self.w as f32), rng.range(0.0, self.h as f32));
            let (radius, strength) = (size * rng.range(0.06, 0.2), rng.range(0.2, 0.6));
            let tone = colour(rng, (0.0, 0.7), (0.1, 1.0));
            let ragged = Blotches::new(rng, self.w, self.h, radius * 0.5);
            self.blend_box(cx - radius, cy - radius, cx + radius, cy + radius, tone, |x, y| {
                let r2 = ((x - cx) * (x - cx) + (y - cy) * (y - cy)) / (radius * radius);
                strength * (1.6 * (1.0 - r2).max(0.0) * ragged.at(x, y)).min(1.0)
            });
        }
        for _ in 0..rng.below(6) {
            let tone = colour(rng, (0.0, 0.7), (0.05, 1.0));
            let (width, strength) = (rng.range(0.8, 2.6), rng.range(0.4, 0.9));
            self.stroke(rng, tone, width, strength);
        }
        let tone = colour(rng, (0.0, 0.5), (0.05, 1.0));
        for _ in 0..rng.below(30) {
            let (x, y, r) = (rng.range(0.0, self.w as f32), rng.range(0.0, self.h as f32), rng.range(0.6, 1.6));
            self.blend_box(x - 2.0, y - 2.0, x + 2.0, y + 2.0, tone, |px, py| {
                (r + 0.5 - ((px - x) * (px - x) + (py - y) * (py - y)).sqrt()).clamp(0.0, 0.8)
            });
        }
    }

    /// Adds up to two thin wires in front of everything.
    pub fn wires(&mut self, rng: &mut Rng) {
        for _ in 0..rng.below(3) {
            let tone = colour(rng, (0.0, 0.4), (0.05, 1.0));
            let width = rng.range(0.7, 1.3);
            self.stroke(rng, tone, width, 0.75);
        }
    }

    /// Draws an open line with a few bends.
    fn stroke(&mut self, rng: &mut Rng, tone: Colour, width: f32, strength: f32) {
        let (mut x, mut y) = (rng.range(0.0, self.w as f32), rng.range(0.0, self.h as f32));
        let length = self.w.min(self.h) as f32 * rng.range(0.1, 0.35);
        let mut turns = rng.uniform();
        for _ in 0..1 + rng.below(3) {
            let (c, s) = cos_sin(f64::from(turns));
            let (nx, ny) = (x + length * c as f32, y + length * s as f32);
            let (p, q) = ([f64::from(x), f64::from(y)], [f64::from(nx), f64::from(ny)]);
            let r = width / 2.0 + 1.0;
            self.blend_box(x.min(nx) - r, y.min(ny) - r, x.max(nx) + r, y.max(ny) + r, tone, |px, py| {
                let d = distance_squared([f64::from(px), f64::from(py)], p, q).sqrt() as f32;
                strength * (width / 2.0 + 0.5 - d).clamp(0.0, 1.0)
            });
            (x, y) = (nx, ny);
            turns += rng.range(-0.12, 0.12);
        }
    }

    /// Mixes `tone` into the pixels of a box; `alpha(x, y)` at a pixel's centre is its share.
    fn blend_box(&mut self, x0: f32, y0: f32, x1: f32, y1: f32, tone: Colour, alpha: impl Fn(f32, f32) -> f32) {
        let clip = |v: f32, max: usize| (v.max(0.0) as usize).min(max);
        for y in clip(y0, self.h)..clip(y1 + 1.0, self.h) {
            for x in clip(x0, self.w)..clip(x1 + 1.0, self.w) {
                let p = &mut self.pixels[y * self.w + x];
                *p = mix(*p, tone, alpha(x as f32 + 0.5, y as f32 + 0.5));
            }
        }
    }

    /// Paints a shape: sometimes a shadow, a fill in two colours that contrast with the pixels below, and often an
    /// outline.
    pub fn shape(&mut self, rng: &mut Rng, shape: &Placed) {
        let c = &shape.coverage;
        let size = shape.diameter as f32;
        if rng.below(5) < 2 {
            let shift = f64::from(rng.range(1.0, 3.5));
            let moved: Vec<[f64; 2]> = shape.outline.iter().map(|p| [p[0] + shift, p[1] + shift]).collect();
            self.paint(&coverage(&moved, self.w, self.h), rng.range(0.2, 0.5), |_, _| [0.0; 3]);
        }
        let (a, b) = self.contrasting(rng, c);
        let (cx, cy) = (c.x0 as f32 + c.w as f32 / 2.0, c.y0 as f32 + c.h as f32 / 2.0);
        let texture = Texture::random(rng, self.w, self.h, cx, cy, size);
        self.paint(c, 1.0, |x, y| mix(a, b, texture.at(x, y)));
        if rng.below(2) == 0 {
            let tone = mix(a, if rng.below(3) > 0 { [0.0; 3] } else { [255.0; 3] }, 0.65);
            let width = rng.range(0.8, 1.0 + size * 0.02);
            self.outline(shape, tone, width);
        }
    }

    fn paint(&mut self, c: &Coverage, strength: f32, tone: impl Fn(f32, f32) -> Colour) {
        for (x, y, share) in c.pixels() {
            let p = &mut self.pixels[y * self.w + x];
            *p = mix(*p, tone(x as f32 + 0.5, y as f32 + 0.5), strength * f32::from(share) / 256.0);
        }
    }

    /// Two colours that both differ from the mean of the pixels below: the first pair that is far enough from it, or
    /// the best of twelve pairs.
    fn contrasting(&self, rng: &mut Rng, c: &Coverage) -> (Colour, Colour) {
        const FAR: f32 = 85.0; // of 441 at most: clearly visible in spite of the noise
        let (mut sum, mut n) = ([0.0f32; 3], 0.0f32);
        for (x, y, _) in c.pixels() {
            let p = self.pixels[y * self.w + x];
            sum = std::array::from_fn(|i| sum[i] + p[i]);
            n += 1.0;
        }
        let below = sum.map(|s| s / n.max(1.0));
        let mut best = (-1.0, [0.0; 3], [0.0; 3]);
        for _ in 0..12 {
            let a = colour(rng, (0.15, 0.95), (0.2, 1.0));
            let b = mix(a, colour(rng, (0.0, 0.9), (0.1, 1.0)), rng.range(0.4, 0.9));
            let gap = distance(a, below).min(distance(b, below));
            if gap > best.0 {
                best = (gap, a, b);
            }
            if gap >= FAR {
                break;
            }
        }
        (best.1, best.2)
    }

    /// Darkens or lightens the shape along its edge.
    fn outline(&mut self, shape: &Placed, tone: Colour, width: f32) {
        let c = &shape.coverage;
        let mut near = vec![f32::MAX; c.w * c.h];
        let reach = f64::from(width) + 1.0;
        let n = shape.outline.len();
        for i in 0..n {
            let (p, q) = (shape.outline[i], shape.outline[(i + 1) % n]);
            let clip = |v: f64, lo: usize, len: usize| (v.max(lo as f64) as usize).min(lo + len) - lo;
            let (x0, x1) = (clip(p[0].min(q[0]) - reach, c.x0, c.w), clip(p[0].max(q[0]) + reach + 1.0, c.x0, c.w));
            let (y0, y1) = (clip(p[1].min(q[1]) - reach, c.y0, c.h), clip(p[1].max(q[1]) + reach + 1.0, c.y0, c.h));
            for y in y0..y1 {
                for x in x0..x1 {
                    let centre = [(c.x0 + x) as f64 + 0.5, (c.y0 + y) as f64 + 0.5];
                    let d = distance_squared(centre, p, q) as f32;
                    near[y * c.w + x] = near[y * c.w + x].min(d);
                }
            }
        }
        for (x, y, share) in c.pixels() {
            let d = near[(y - c.y0) * c.w + x - c.x0];
            if d < (width + 1.0) * (width + 1.0) {
                let alpha = (width + 0.5 - d.sqrt()).clamp(0.0, 1.0) * f32::from(share) / 256.0;
                let p = &mut self.pixels[y * self.w + x];
                *p = mix(*p, tone, alpha);
            }
        }
    }

    /// Adds light from one side, a darker or lighter spot and sensor noise, and converts the pixels to bytes.
    pub fn develop(self, rng: &mut Rng, noise: Stream) -> Vec<u8> {
        let (c, s) = cos_sin(f64::from(rng.uniform()));
        let (c, s) = (c as f32, s as f32);
        let (strength, gain) = (rng.range(0.0, 0.35), rng.range(0.8, 1.12));
        let (half_w, half_h) = (self.w as f32 / 2.0, self.h as f32 / 2.0);
        let (sx, sy) = (rng.range(-1.0, 1.0), rng.range(-1.0, 1.0));
        let spot = rng.range(-0.2, 0.25);
        let grain = rng.range(1.0, 7.0) / 128.0;
        let mut bytes = Vec::with_capacity(3 * self.pixels.len());
        let mut random = [0u8; 16];
        for (i, p) in self.pixels.iter().enumerate() {
            if i.is_multiple_of(8) {
                let block = noise.block(i as u32 / 8);
                for (four, v) in random.chunks_exact_mut(4).zip(block) {
                    four.copy_from_slice(&v.to_le_bytes());
                }
            }
            // the sum of two bytes has a triangular distribution of mean 255 and standard deviation 104.5
            let k = 2 * (i % 8);
            let n = (f32::from(random[k]) + f32::from(random[k + 1]) - 255.0) * grain;
            let (x, y) = ((i % self.w) as f32 / half_w - 1.0, (i / self.w) as f32 / half_h - 1.0);
            let r2 = (x - sx) * (x - sx) + (y - sy) * (y - sy);
            let light = gain * (1.0 + strength * (c * x + s * y)) * (1.0 + spot * (1.0 - r2).max(0.0));
            bytes.extend(p.map(|v| (v * light + n + 0.5).clamp(0.0, 255.0) as u8));
        }
        bytes
    }
}
