//! Brings a decoded picture and its boxes to a place in a batch: scale jitter, crop, flip, colour, with mmdetection's
//! arithmetic (fixtures README, 34). Pixels stay u8: the device normalises them and sets the padding to zero
//! afterwards.
//!
//! [`Pipeline::place`] needs sizes and random numbers only, so a crop without a box is refused before a pixel is
//! touched. Main types: [`Pipeline`], [`Geometry`], [`Placement`].

use super::augment::{Colour, ColourJitter};
use super::buckets::{Buckets, Shape};
use super::coco::{Annotation, Dataset};
use super::decode::Image;
use super::resize::{Scratch, Window, resize_window};
use crate::error::{Error, Result};
use crate::philox::{Purpose, Rng, Stream};

/// How pictures of any size are brought to the shapes of batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Geometry {
    /// One shape for all pictures. A picture is scaled by r ~ U(jitter) times the factor that makes it fit, cropped at
    /// random where it is too large, and padded on the right and below to exactly `shape`. The paper's pre-training is
    /// 448×448 and (0.8, 1.2); (1, 1) never crops.
    Fixed {
        /// The batch's height and width.
        shape: Shape,
        /// Lowest and highest scale.
        jitter: (f32, f32),
    },
    /// A few shapes. A picture is scaled to fit within `long` and `short`, keeping its aspect ratio, and padded to a
    /// shape.
    Buckets {
        /// Largest longer side.
        long: u32,
        /// Largest shorter side.
        short: u32,
        /// Lowest and highest scale; (1, 1) for none.
        jitter: (f32, f32),
        /// Sides of shapes are multiples of this.
        divisor: u32,
        /// Largest number of shapes.
        max_shapes: usize,
    },
}

impl Geometry {
    /// The paper's fine-tuning: keeps the aspect ratio; at most four shapes, multiples of 32.
    pub fn finetune(long: u32, short: u32) -> Self {
        Geometry::Buckets { long, short, jitter: (1.0, 1.0), divisor: 32, max_shapes: 4 }
    }

    /// The same geometry without scale jitter.
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

    /// Width and height of a picture of `size` at the largest scale.
    pub(super) fn largest(&self, size: (u32, u32)) -> (u32, u32) {
        self.resized(size, f64::from(self.jitter().1))
    }

    /// Width and height of a picture after scaling by `r` times the factor that makes it fit; each side becomes
    /// `int(dim * f + 0.5)`.
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

/// All changes that a picture goes through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pipeline {
    /// Scale, crop and shape.
    pub geometry: Geometry,
    /// Probability of mirroring left and right.
    pub flip: f32,
    /// Probability of mirroring top and bottom.
    pub vertical_flip: f32,
    /// Random changes of colour.
    pub colour: ColourJitter,
}

/// Where a picture and its boxes go in a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The part of the resized picture that is drawn at the top left of the canvas.
    pub window: Window,
    /// Horizontal and vertical scale of the boxes.
    pub scale: (f32, f32),
    /// Height and width of the content, then of its padded shape: `img_h, img_w, pad_h, pad_w`.
    pub sizes: [f32; 4],
}

/// The random numbers of one place in a batch. They do not depend on the thread or on whether the run was resumed.
pub struct Draws {
    scale: Rng,
    crop: Rng,
    flip: Rng,
    colour: Rng,
    redraw: Rng,
}

impl Draws {
    /// The random numbers of place `slot` in step `step`.
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

    /// Draws an index into a list of `n`: the picture that replaces a refused one.
    pub fn replacement(&mut self, n: usize) -> usize {
        self.redraw.below(n as u32) as usize
    }
}

impl Pipeline {
    /// The pipeline of evaluation, without randomness.
    pub fn test(geometry: Geometry) -> Self {
        Self { geometry: geometry.test(), flip: 0.0, vertical_flip: 0.0, colour: ColourJitter::default() }
    }

    /// Fails for numbers outside their range.
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

    /// The shapes for images `indices` of a data set, in batches of `batch` images.
    pub fn buckets(&self, dataset: &Dataset, indices: &[usize], batch: usize) -> Buckets {
        self.buckets_and_sizes(dataset, indices, batch).0
    }

    /// Like [`Pipeline::buckets`], with the size of each image at the largest scale, before padding.
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

    /// Draws a picture on a canvas of `shape` (`out`, `[H,W,3]`). The rest of the canvas becomes 0.
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
    /// Moves the crop so that its middle is as near as possible to the middle of box `b` of the original picture.
    pub(super) fn centre_on(&mut self, b: [f32; 4]) {
        let w = &mut self.window;
        let start = |lo: f32, hi: f32, scale: f32, whole: u32, size: u32| {
            let middle = (lo + hi) * 0.5 * scale - size as f32 * 0.5;
            (middle.max(0.0) as u32).min(whole - size)
        };
        w.at.0 = start(b[0], b[2], self.scale.0, w.resized.0, w.size.0);
        w.at.1 = start(b[1], b[3], self.scale.1, w.resized.1, w.size.1);
    }

    /// The box in the batch for a box of the original picture. None if nothing of it is inside the crop.
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

    /// The boxes of the ground truth that are left after the crop, with their classes.
    pub fn boxes<'a>(&'a self, gt: impl Iterator<Item = &'a Annotation> + 'a) -> impl Iterator<Item = ([f32; 4], i32)> {
        gt.filter_map(|a| self.map(a.xyxy).map(|b| (b, a.class as i32)))
    }
}
