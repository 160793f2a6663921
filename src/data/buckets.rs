//! Shape buckets: a few padded shapes for images of many sizes, so that training steps have few distinct shapes.

/// Height and width of a batch's pictures in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// Height in pixels.
    pub height: u32,
    /// Width in pixels.
    pub width: u32,
}

impl Shape {
    /// A square with this side.
    pub fn square(side: u32) -> Self {
        Self { height: side, width: side }
    }
    /// Number of pixels.
    pub fn pixels(self) -> u64 {
        u64::from(self.height) * u64::from(self.width)
    }
    /// Whether `other` fits into this shape.
    pub fn holds(self, other: Shape) -> bool {
        self.height >= other.height && self.width >= other.width
    }
    fn union(self, other: Shape) -> Shape {
        Shape { height: self.height.max(other.height), width: self.width.max(other.width) }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}", self.height, self.width)
    }
}

/// The shapes of a data set, and which image goes into which shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Distinct shapes, sorted by number of pixels.
    pub shapes: Vec<Shape>,
    /// For each image, an index into `shapes`.
    pub of_image: Vec<u16>,
}

impl Buckets {
    /// Puts all images into one shape.
    pub fn one(shape: Shape, images: usize) -> Self {
        Self { shapes: vec![shape], of_image: vec![0; images] }
    }

    /// Chooses at most `max_shapes` shapes for images of `sizes`, with sides that are multiples of `divisor`, so that
    /// few pixels are wasted. Each image goes into the smallest shape that holds it. Batches have `batch` images of one
    /// shape; the last batch of each shape is filled up, which counts as waste too.
    pub fn choose(sizes: &[Shape], max_shapes: usize, divisor: u32, batch: usize) -> Self {
        let pad = |s: &Shape, d: u32| {
            let up = |v: u32| v.max(1).next_multiple_of(d.max(1));
            Shape { height: up(s.height), width: up(s.width) }
        };
        let mut grid = divisor;
        let mut padded = distinct(sizes, |s| pad(s, grid));
        while padded.len() > MAX_DISTINCT {
            grid *= 2;
            padded = distinct(sizes, |s| pad(s, grid));
        }
        let mut shapes = merge(&padded, max_shapes.max(1), batch);
        improve(&mut shapes, &padded, batch);
        // Shrink each shape to its images. Then an image may fit into a smaller shape than before: repeat.
        let exact: Vec<Shape> = sizes.iter().map(|s| pad(s, divisor)).collect();
        let assign = |shapes: &[Shape]| -> Vec<u16> {
            exact.iter().map(|s| smallest(shapes, *s).expect("shapes cover every padded size") as u16).collect()
        };
        loop {
            let of_image = assign(&shapes);
            let mut tight: Vec<Option<Shape>> = vec![None; shapes.len()];
            for (k, s) in of_image.iter().zip(&exact) {
                let slot = &mut tight[usize::from(*k)];
                *slot = Some(slot.map_or(*s, |t| t.union(*s)));
            }
            // Drop shapes without images, so that nothing is planned for them.
            let mut tight: Vec<Shape> = tight.into_iter().flatten().collect();
            tight.sort_by_key(|s| (s.pixels(), s.height));
            if tight == shapes {
                return Self { of_image, shapes };
            }
            shapes = tight;
        }
    }

    /// The shape of an image.
    pub fn shape(&self, image: usize) -> Shape {
        self.shapes[usize::from(self.of_image[image])]
    }

    /// The share of pixels that are padding, for images of `sizes`.
    pub fn waste(&self, sizes: &[Shape]) -> f64 {
        let used: u64 = sizes.iter().map(|s| s.pixels()).sum();
        let all: u64 = (0..sizes.len()).map(|i| self.shape(i).pixels()).sum();
        if all == 0 { 0.0 } else { 1.0 - used as f64 / all as f64 }
    }
}

/// If there are more distinct sizes, they are rounded to a coarser grid first: the search is cubic in their number.
const MAX_DISTINCT: usize = 96;

/// Distinct padded sizes, each with its number of images.
fn distinct(sizes: &[Shape], pad: impl Fn(&Shape) -> Shape) -> Vec<(Shape, usize)> {
    let mut count = std::collections::BTreeMap::new();
    for s in sizes {
        *count.entry(pad(s)).or_insert(0) += 1;
    }
    count.into_iter().collect()
}

/// Index of the shape with the fewest pixels that holds `size`.
fn smallest(shapes: &[Shape], size: Shape) -> Option<usize> {
    (0..shapes.len()).filter(|&k| shapes[k].holds(size)).min_by_key(|&k| (shapes[k].pixels(), k))
}

/// Pixels that one pass over the data computes. None if a size fits into no shape.
fn cost(shapes: &[Shape], padded: &[(Shape, usize)], batch: usize) -> Option<u64> {
    let mut count = vec![0usize; shapes.len()];
    for (size, n) in padded {
        count[smallest(shapes, *size)?] += n;
    }
    let batch = batch.max(1);
    Some(shapes.iter().zip(count).map(|(s, n)| s.pixels() * n.next_multiple_of(batch) as u64).sum())
}

/// Merges the pair of shapes whose union costs least until at most `max` are left.
fn merge(padded: &[(Shape, usize)], max: usize, batch: usize) -> Vec<Shape> {
    let mut groups = padded.to_vec();
    let pixels = |s: Shape, n: usize| s.pixels() * n.next_multiple_of(batch.max(1)) as u64;
    while groups.len() > 1 {
        let mut best: Option<(i64, usize, usize)> = None;
        for i in 0..groups.len() {
            for j in i + 1..groups.len() {
                let ((a, n), (b, m)) = (groups[i], groups[j]);
                let added = pixels(a.union(b), n + m) as i64 - (pixels(a, n) + pixels(b, m)) as i64;
                if best.is_none_or(|(v, ..)| added < v) {
                    best = Some((added, i, j));
                }
            }
        }
        let Some((added, i, j)) = best.filter(|(added, ..)| groups.len() > max || *added <= 0) else { break };
        let _ = added;
        let (b, m) = groups.swap_remove(j);
        groups[i] = (groups[i].0.union(b), groups[i].1 + m);
    }
    groups.into_iter().map(|(s, _)| s).collect()
}

/// Changes one shape at a time to the best height and width that occur in the data, until the cost no longer falls.
fn improve(shapes: &mut [Shape], padded: &[(Shape, usize)], batch: usize) {
    let mut heights: Vec<u32> = padded.iter().map(|(s, _)| s.height).collect();
    let mut widths: Vec<u32> = padded.iter().map(|(s, _)| s.width).collect();
    for list in [&mut heights, &mut widths] {
        list.sort_unstable();
        list.dedup();
    }
    let Some(mut best) = cost(shapes, padded, batch) else { return };
    loop {
        let before = best;
        for k in 0..shapes.len() {
            let (mut found, old) = (shapes[k], shapes[k]);
            // Both sides are changed at once only where the lists are short; else one side at a time, to stay fast.
            for &height in &heights {
                for &width in &widths {
                    if heights.len() * widths.len() > 1024 && height != old.height && width != old.width {
                        continue;
                    }
                    shapes[k] = Shape { height, width };
                    if let Some(c) = cost(shapes, padded, batch).filter(|c| *c < best) {
                        (best, found) = (c, shapes[k]);
                    }
                }
            }
            shapes[k] = found;
        }
        if best == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape((height, width): (u32, u32)) -> Shape {
        Shape { height, width }
    }

    #[test]
    fn images_of_one_size_have_one_bucket() {
        let b = Buckets::choose(&[shape((240, 320)); 9], 4, 32, 2);
        assert_eq!((b.shapes, b.of_image), (vec![shape((256, 320))], vec![0; 9]));
        let none = Buckets::choose(&[], 4, 32, 2);
        assert!(none.shapes.is_empty() && none.of_image.is_empty());
    }

    #[test]
    fn few_sizes_are_kept_apart_and_many_are_merged() {
        let sizes: Vec<Shape> =
            [(800, 1067), (1067, 800), (800, 1199), (800, 1333)].iter().copied().map(shape).collect();
        let many: Vec<Shape> = sizes.iter().cycle().take(400).copied().collect();
        let b = Buckets::choose(&many, 4, 32, 2);
        assert_eq!(b.shapes, [(1088, 800), (800, 1088), (800, 1216), (800, 1344)].map(shape).to_vec().sorted());
        assert!(b.waste(&many) < 0.02);
        let two = Buckets::choose(&many, 2, 32, 2);
        assert_eq!(two.shapes, [(1088, 800), (800, 1344)].map(shape));
        let one = Buckets::choose(&many, 1, 32, 2);
        assert_eq!(one.shapes, [shape((1088, 1344))]);
    }

    trait Sorted {
        fn sorted(self) -> Self;
    }
    impl Sorted for Vec<Shape> {
        fn sorted(mut self) -> Self {
            self.sort_by_key(|s| (s.pixels(), s.height));
            self
        }
    }

    #[test]
    fn a_rare_size_is_not_worth_a_bucket_of_its_own() {
        // One 300 × 300 among a hundred 320 × 320: its own bucket would be filled up with 15 more images of a batch.
        let mut sizes = vec![shape((320, 320)); 96];
        sizes.push(shape((250, 250)));
        assert_eq!(
            Buckets::choose(&sizes, 4, 32, 16).shapes.len(),
            2,
            "a batch more either way: the smaller is cheaper"
        );
        sizes.truncate(95);
        sizes.push(shape((250, 250)));
        assert_eq!(Buckets::choose(&sizes, 4, 32, 16).shapes, [shape((320, 320))], "96 images are six full batches");
    }

    #[test]
    fn thousands_of_sizes_are_covered_quickly_and_tightly() {
        let mut rng = crate::philox::Stream::new(1, 0, 0, 0, crate::philox::Purpose::Test).rng();
        let sizes: Vec<Shape> = (0..3000)
            .map(|_| {
                let (a, b) = (200 + rng.below(600), 500 + rng.below(833));
                if rng.below(4) == 0 { shape((b, a)) } else { shape((a, b)) }
            })
            .collect();
        for max in [1, 2, 4, 8] {
            let b = Buckets::choose(&sizes, max, 32, 2);
            assert!(b.shapes.len() <= max);
            for (i, s) in sizes.iter().enumerate() {
                assert!(
                    b.shape(i).holds(*s) && [b.shape(i).height, b.shape(i).width].iter().all(|v| v.is_multiple_of(32))
                );
                let better = b.shapes.iter().any(|o| o.holds(*s) && o.pixels() < b.shape(i).pixels());
                assert!(!better, "{s} in {}", b.shape(i));
            }
            let limit = [0.77, 0.63, 0.49, 0.39][max.ilog2() as usize];
            assert!(b.waste(&sizes) < limit, "{max}: {} {:?}", b.waste(&sizes), b.shapes);
        }
    }
}
