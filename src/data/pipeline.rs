//! From a decoded picture and its boxes to a place in a batch: scale jitter, crop, flip, colour; mmdetection's
//! arithmetic (fixtures README, 34). Pixels stay u8: normalising, and the zero padding after it, is the device's work.
//!
//! Where everything goes ([`Pipeline::place`]) follows from sizes and random numbers alone, so a crop without a box
//! is refused before a pixel is touched.

use super::augment::{Colour, ColourJitter};
use super::buckets::{Buckets, Shape};
use super::coco::{Annotation, Dataset};
use super::decode::Image;
use super::resize::{Scratch, Window, resize_window};
use crate::error::{Error, Result};
use crate::philox::{Purpose, Rng, Stream};

/// How pictures come to the network's shapes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Geometry {
    /// One shape for all: scale by r ~ U(jitter) times what fits, crop what is too large at random, pad right and
    /// below to exactly `shape`. The paper's pre-training is 448×448 and (0.8, 1.2); (1, 1) never crops.
    Fixed {
        /// The batch's height and width.
        shape: Shape,
        /// Lowest and highest scale.
        jitter: (f32, f32),
    },
    /// Scale to fit within `long` and `short` keeping the ratio, pad to one of a few shapes.
    Buckets {
        /// Limit of the longer side.
        long: u32,
        /// Limit of the shorter side.
        short: u32,
        /// Lowest and highest scale; (1, 1) for none.
        jitter: (f32, f32),
        /// Shapes are multiples of this.
        divisor: u32,
        /// At most so many shapes.
        max_shapes: usize,
    },
}

impl Geometry {
    /// The paper's fine-tuning: keep the ratio, at most four shapes, multiples of 32.
    pub fn finetune(long: u32, short: u32) -> Self {
        Geometry::Buckets { long, short, jitter: (1.0, 1.0), divisor: 32, max_shapes: 4 }
    }

    /// The same without randomness.
    pub fn test(self) -> Self {
        match self {
            Geometry::Fixed { shape, .. } => Geometry::Fixed { shape, jitter: (1.0, 1.0) },
            Geometry::Buckets { long, short, divisor, max_shapes, .. } => {
                Geometry::Buckets { long, short, jitter: (1.0, 1.0), divisor, max_shapes }
            }
        }
    }

    fn jitter(&self) -> (f32, f32) {
        match self {
            Geometry::Fixed { jitter, .. } | Geometry::Buckets { jitter, .. } => *jitter,
        }
    }

    /// Width and height of a picture at the largest scale.
    pub(super) fn largest(&self, size: (u32, u32)) -> (u32, u32) {
        self.resized(size, f64::from(self.jitter().1))
    }

    /// Size of a picture after scaling by `r` times what fits: `new = int(dim * f + 0.5)`.
    fn resized(&self, (w, h): (u32, u32), r: f64) -> (u32, u32) {
        let times = |limit: u32| (f64::from(limit) * r).floor().max(1.0);
        let (w, h) = (f64::from(w), f64::from(h));
        let f = match self {
            Geometry::Fixed { shape, .. } => (times(shape.width) / w).min(times(shape.height) / h),
            Geometry::Buckets { long, short, .. } => (times(*long) / w.max(h)).min(times(*short) / w.min(h)),
        };
        (((w * f + 0.5) as u32).max(1), ((h * f + 0.5) as u32).max(1))
    }
}

/// Everything that happens to a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pipeline {
    /// Size and shape.
    pub geometry: Geometry,
    /// Chance of mirroring left and right.
    pub flip: f32,
    /// Chance of mirroring top and bottom.
    pub vertical_flip: f32,
    /// Random changes of colour.
    pub colour: ColourJitter,
}

/// Where a picture and its boxes go.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// What is drawn at the top left of the canvas.
    pub window: Window,
    /// Horizontal and vertical scale of boxes.
    pub scale: (f32, f32),
    /// Height and width of the content and of its padded shape: `img_h, img_w, pad_h, pad_w`.
    pub sizes: [f32; 4],
}

/// The random numbers of one place in a batch: the same whatever thread asks, and however the run got here.
pub struct Draws {
    scale: Rng,
    crop: Rng,
    flip: Rng,
    colour: Rng,
    redraw: Rng,
}

impl Draws {
    /// Those of slot `slot` in step `step`.
    pub fn new(seed: u64, stage: u8, step: u64, slot: u32) -> Self {
        let of = |purpose| Stream::new(seed, stage, step, slot, purpose).rng();
        Self {
            scale: of(Purpose::Scale),
            crop: of(Purpose::Crop),
            flip: of(Purpose::Flip),
            colour: of(Purpose::Colour),
            redraw: of(Purpose::Redraw),
        }
    }

    /// A place in a list of `n` for the picture that replaces a refused one.
    pub fn replacement(&mut self, n: usize) -> usize {
        self.redraw.below(n as u32) as usize
    }
}

impl Pipeline {
    /// Evaluation: no randomness.
    pub fn test(geometry: Geometry) -> Self {
        Self { geometry: geometry.test(), flip: 0.0, vertical_flip: 0.0, colour: ColourJitter::default() }
    }

    /// Refuses numbers that make no sense.
    pub fn check(&self) -> Result<()> {
        let err = |what: &str, message: String| Err(Error::value(format!("pipeline: {what}"), message));
        let (lo, hi) = self.geometry.jitter();
        if !(lo > 0.0 && lo <= hi && hi <= 16.0) {
            return err("jitter", format!("want 0 < low <= high <= 16, got {lo} and {hi}"));
        }
        let (sides, divisor) = match self.geometry {
            Geometry::Fixed { shape, .. } => ([shape.width, shape.height], 1),
            Geometry::Buckets { long, short, divisor, .. } => ([long, short], divisor),
        };
        if sides.iter().any(|s| !(1..=super::decode::MAX_SIDE).contains(s)) || divisor == 0 || divisor > 4096 {
            return err("size", format!("want sides of 1 to {} pixels, got {sides:?}", super::decode::MAX_SIDE));
        }
        for (name, p) in [("flip", self.flip), ("vertical_flip", self.vertical_flip)] {
            if !(0.0..=1.0).contains(&p) {
                return err(name, format!("want a chance of 0 to 1, got {p}"));
            }
        }
        self.colour.check()
    }

    /// The shapes that images `indices` of a data set come in, in batches of `batch`.
    pub fn buckets(&self, dataset: &Dataset, indices: &[usize], batch: usize) -> Buckets {
        self.buckets_and_sizes(dataset, indices, batch).0
    }

    /// As [`Pipeline::buckets`], with the size of each image before padding at the largest scale.
    pub(super) fn buckets_and_sizes(
        &self,
        dataset: &Dataset,
        indices: &[usize],
        batch: usize,
    ) -> (Buckets, Vec<Shape>) {
        let resized = indices.iter().map(|&i| {
            let (width, height) = self.geometry.largest((dataset.images[i].width, dataset.images[i].height));
            Shape { height, width }
        });
        let sizes: Vec<Shape> = resized.collect();
        let buckets = match self.geometry {
            Geometry::Fixed { shape, .. } => Buckets::one(shape, indices.len()),
            Geometry::Buckets { divisor, max_shapes, .. } => Buckets::choose(&sizes, max_shapes, divisor, batch),
        };
        (buckets, sizes)
    }

    /// Draws where a picture of `size` (width, height) goes on a canvas of `shape`.
    pub fn place(&self, size: (u32, u32), shape: Shape, draws: &mut Draws) -> Placement {
        let (lo, hi) = self.geometry.jitter();
        let r = if lo == hi { lo } else { draws.scale.range(lo, hi) };
        let resized = self.geometry.resized(size, f64::from(r));
        let content = (resized.0.min(shape.width), resized.1.min(shape.height));
        let mut offset = |have: u32, want: u32| if have > want { draws.crop.below(have - want + 1) } else { 0 };
        // Height first, as mmdetection draws them.
        let top = offset(resized.1, content.1);
        let left = offset(resized.0, content.0);
        let flip_x = draws.flip.uniform() < self.flip;
        let flip_y = draws.flip.uniform() < self.vertical_flip;
        let pad = match self.geometry {
            Geometry::Fixed { .. } => (shape.width, shape.height),
            Geometry::Buckets { divisor, .. } => (
                content.0.next_multiple_of(divisor).min(shape.width),
                content.1.next_multiple_of(divisor).min(shape.height),
            ),
        };
        Placement {
            window: Window { resized, at: (left, top), size: content, flip_x, flip_y },
            scale: (resized.0 as f32 / size.0 as f32, resized.1 as f32 / size.1 as f32),
            sizes: [content.1 as f32, content.0 as f32, pad.1 as f32, pad.0 as f32],
        }
    }

    /// Draws a picture onto a canvas of `shape` (`out`, `[H,W,3]`); what it does not cover becomes 0.
    pub fn render(
        &self,
        image: &Image,
        placement: &Placement,
        shape: Shape,
        draws: &mut Draws,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) {
        let stride = shape.width as usize;
        let (w, h) = (placement.window.size.0 as usize, placement.window.size.1 as usize);
        resize_window(image, &placement.window, out, stride, scratch);
        for line in out.chunks_mut(stride * 3).take(h) {
            line[w * 3..].fill(0);
        }
        out[h * stride * 3..].fill(0);
        if !self.colour.is_off() {
            let lines = || out.chunks(stride * 3).take(h).map(|l| &l[..w * 3]);
            let colour = Colour::draw(&self.colour, &mut draws.colour, lines());
            for line in out.chunks_mut(stride * 3).take(h) {
                colour.apply(&mut line[..w * 3]);
            }
        }
    }
}

impl Placement {
    /// Moves the crop so that the middle of a box of the original picture is as near its middle as can be.
    pub(super) fn centre_on(&mut self, b: [f32; 4]) {
        let w = &mut self.window;
        let start = |lo: f32, hi: f32, scale: f32, whole: u32, size: u32| {
            let middle = (lo + hi) * 0.5 * scale - size as f32 * 0.5;
            (middle.max(0.0) as u32).min(whole - size)
        };
        w.at.0 = start(b[0], b[2], self.scale.0, w.resized.0, w.size.0);
        w.at.1 = start(b[1], b[3], self.scale.1, w.resized.1, w.size.1);
    }

    /// Where a box of the original picture comes to lie; none if the crop leaves nothing of it.
    pub fn map(&self, b: [f32; 4]) -> Option<[f32; 4]> {
        let w = &self.window;
        let clip = |v: f32, scale: f32, whole: u32, at: u32, size: u32| {
            ((v * scale).clamp(0.0, whole as f32) - at as f32).clamp(0.0, size as f32)
        };
        let x = |v| clip(v, self.scale.0, w.resized.0, w.at.0, w.size.0);
        let y = |v| clip(v, self.scale.1, w.resized.1, w.at.1, w.size.1);
        let (mut x0, mut x1) = (x(b[0]), x(b[2]));
        let (mut y0, mut y1) = (y(b[1]), y(b[3]));
        if w.flip_x {
            (x0, x1) = (w.size.0 as f32 - x1, w.size.0 as f32 - x0);
        }
        if w.flip_y {
            (y0, y1) = (w.size.1 as f32 - y1, w.size.1 as f32 - y0);
        }
        (x1 > x0 && y1 > y0).then_some([x0, y0, x1, y1])
    }

    /// The boxes that are left of a picture's ground truth, with their classes.
    pub fn boxes<'a>(&'a self, gt: impl Iterator<Item = &'a Annotation> + 'a) -> impl Iterator<Item = ([f32; 4], i32)> {
        gt.filter_map(|a| self.map(a.xyxy).map(|b| (b, a.class as i32)))
    }
}
