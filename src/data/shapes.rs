//! The built-in data set: pictures of textured, turned, partly hidden shapes of six classes at several scales on noisy
//! backgrounds, with boxes and polygon masks in COCO format. It is for first experiments without data of one's own, and
//! for tests. The same seed gives the same bytes on every machine and for every number of threads.
//!
//! [`generate`] writes a data set, [`ensure`] writes it only if it does not exist yet, [`render`] makes one picture in
//! memory. Read next: `scene` (where shapes lie), `paint` (pixels), `raster` and `trace` (polygons to pixels and back).

mod class;
mod paint;
pub(crate) mod raster;
mod scene;
pub(crate) mod trace;

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use class::Class;

use crate::error::{Error, Result};
use crate::output::write_public;
use crate::philox::{Purpose, Stream};

/// Part of the `info` of the annotation files. It is raised when the same options give other bytes than before.
const VERSION: &str = "2";

/// Options of [`generate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapesOptions {
    /// Seed of all random numbers.
    pub seed: u64,
    /// Number of pictures for training.
    pub train: usize,
    /// Number of pictures for validation.
    pub val: usize,
    /// Number of pictures for a test set; 0 writes no test files.
    pub test: usize,
    /// Largest width and height of a landscape picture. Each picture is up to a fifth smaller in each direction, and
    /// about every third one is in portrait format.
    pub size: (u32, u32),
    /// Smallest and largest number of shapes wanted in a picture.
    pub objects: (u32, u32),
}

impl Default for ShapesOptions {
    fn default() -> Self {
        ShapesOptions { seed: 1, train: 600, val: 150, test: 0, size: (240, 180), objects: (3, 10) }
    }
}

impl ShapesOptions {
    /// Checks the options.
    ///
    /// Errors: `Value` for options outside their range.
    pub fn check(&self) -> Result<()> {
        let (w, h) = self.size;
        if !(48..=4096).contains(&w) || !(48..=4096).contains(&h) {
            return Err(Error::value("shapes: size", format!("{w}x{h}: want 48 to 4096 pixels in each direction")));
        }
        let (least, most) = self.objects;
        if least < 1 || least > most || most > 1000 {
            return Err(Error::value("shapes: objects", format!("{least} to {most}: want 1 <= least <= most <= 1000")));
        }
        let pictures = self.train.saturating_add(self.val).saturating_add(self.test);
        if pictures == 0 {
            return Err(Error::value("shapes: train, val, test", "no picture at all: ask for at least one"));
        }
        if pictures > 1_000_000 {
            return Err(Error::value("shapes: train, val, test", "more than a million pictures; ask for fewer"));
        }
        Ok(())
    }

    fn splits(&self) -> impl Iterator<Item = (Split, usize)> {
        [(Split::Train, self.train), (Split::Val, self.val), (Split::Test, self.test)].into_iter().filter(|s| s.1 > 0)
    }

    /// Number of pictures in the splits before this one, because picture ids are unique in the whole set.
    fn first(&self, split: Split) -> usize {
        match split {
            Split::Train => 0,
            Split::Val => self.train,
            Split::Test => self.train + self.val,
        }
    }
}

/// A part of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For validation during training.
    Val,
    /// For a test at the end of training.
    Test,
}

impl Split {
    /// Name of the folder and of the annotation file.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
            Split::Test => "test",
        }
    }
}

/// The visible part of one shape of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct VisibleShape {
    /// Class of the shape.
    pub class: Class,
    /// Box x0, y0, x1, y1 around the visible pixels.
    pub bbox: [f32; 4],
    /// Polygons of the visible part, without holes, as pairs of x and y.
    pub polygons: Vec<Vec<[f64; 2]>>,
    /// Sum of the areas of the polygons.
    pub area: f64,
}

/// One picture with its annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height * width * 3` bytes, red first.
    pub rgb: Vec<u8>,
    /// The shapes, back to front.
    pub shapes: Vec<VisibleShape>,
}

/// One part of a data set, as it lies on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitSummary {
    /// The part of the data set.
    pub split: Split,
    /// Path of its annotation file.
    pub annotations: PathBuf,
    /// The folder of its pictures, to which `file_name` is relative.
    pub images_dir: PathBuf,
    /// Number of pictures.
    pub images: usize,
    /// Number of shapes of each class, in the order of [`Class::ALL`].
    pub instances: [usize; 6],
}

/// The result of [`generate`] and [`ensure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapesSummary {
    /// The parts, in the order train, val, test; empty ones are left out.
    pub splits: Vec<SplitSummary>,
    /// False if [`ensure`] found the data set already complete.
    pub written: bool,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Info {
    description: String,
    version: String,
    year: u32,
    contributor: String,
    date_created: String,
}

impl Info {
    fn new(o: &ShapesOptions, split: Split) -> Self {
        let (w, h) = o.size;
        Info {
            description: format!(
                "upres shapes, {}: seed {}, {} + {} + {} pictures up to {w}x{h}, {} to {} shapes",
                split.name(),
                o.seed,
                o.train,
                o.val,
                o.test,
                o.objects.0,
                o.objects.1
            ),
            version: VERSION.into(),
            year: 2026,
            contributor: "upres".into(),
            date_created: "2026-01-01".into(), // fixed: the file must not depend on the day
        }
    }
}

#[derive(Serialize)]
struct License {
    id: u32,
    name: &'static str,
    url: &'static str,
}

#[derive(Serialize, Deserialize)]
struct ImageEntry {
    id: usize,
    file_name: String,
    width: usize,
    height: usize,
    license: u32,
}

#[derive(Serialize, Deserialize)]
struct AnnotationEntry {
    id: usize,
    image_id: usize,
    category_id: u32,
    bbox: [f32; 4],
    area: f64,
    segmentation: Vec<Vec<f64>>,
    iscrowd: u8,
}

#[derive(Serialize)]
struct Category {
    id: u32,
    name: &'static str,
    supercategory: &'static str,
}

#[derive(Serialize)]
struct Written {
    info: Info,
    licenses: [License; 1],
    images: Vec<ImageEntry>,
    annotations: Vec<AnnotationEntry>,
    categories: Vec<Category>,
}

/// The parts of an annotation file that [`ensure`] reads.
#[derive(Deserialize)]
struct Found {
    info: Info,
    images: Vec<ImageEntry>,
    annotations: Vec<AnnotationEntry>,
}

/// Draws picture number `index` of a split.
pub fn render(options: &ShapesOptions, split: Split, index: usize) -> Result<Picture> {
    options.check()?;
    Ok(picture(options, split, index))
}

/// Like [`render`], for options that have been checked.
fn picture(options: &ShapesOptions, split: Split, index: usize) -> Picture {
    let stream = |step| Stream::new(options.seed, split as u8, step, index as u32, Purpose::Shapes);
    let mut layout = stream(0).rng();
    let shrink = |side: u32, k: u32| (side - side * k / 20) as usize;
    let (w, h) = (shrink(options.size.0, layout.below(5)), shrink(options.size.1, layout.below(5)));
    let (width, height) = if layout.below(3) == 0 { (h, w) } else { (w, h) };
    let scene = scene::Scene::new(&mut layout, width, height, options.objects);

    let mut ground = stream(1).rng();
    let mut canvas = paint::Canvas::background(&mut ground, width, height);
    canvas.distractors(&mut ground);
    for (i, shape) in scene.shapes.iter().enumerate() {
        canvas.shape(&mut stream(16 + i as u64).rng(), shape);
    }
    let mut light = stream(2).rng();
    canvas.wires(&mut light);
    let rgb = canvas.develop(&mut light, stream(3));

    let shapes = scene.shapes.iter().enumerate().filter_map(|(i, s)| visible(s.class, &scene.visible(i))).collect();
    Picture { width, height, rgb, shapes }
}

/// Box and polygons of a mask. None if it has no pixel.
fn visible(class: Class, mask: &trace::Mask) -> Option<VisibleShape> {
    let bbox = mask.bounds()?.map(|v| v as f32);
    let polygons = mask.polygons();
    let area = polygons.iter().map(|p| raster::twice_area(p) / 2.0).sum();
    Some(VisibleShape { class, bbox, polygons, area })
}

/// Writes `dir/images/<split>/*.png` and then `dir/annotations/<split>.json`, so that an annotation file means that its
/// pictures are complete.
///
/// Errors: `Data` if `dir` holds files that were not made here, so that no other pictures are overwritten.
pub fn generate(dir: &Path, options: &ShapesOptions) -> Result<ShapesSummary> {
    options.check()?;
    claim(dir)?;
    let mut splits = Vec::new();
    for (split, count) in options.splits() {
        let (annotations, images_dir) = paths(dir, split);
        for folder in [&images_dir, &dir.join("annotations")] {
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let shapes = (0..count)
            .into_par_iter()
            .map(|i| {
                let picture = picture(options, split, i);
                let path = images_dir.join(file_name(options, split, i));
                let png = encode_png(&picture.rgb, picture.width, picture.height)?;
                write_public(&path, &png)?;
                Ok((picture.width, picture.height, picture.shapes))
            })
            .collect::<Result<Vec<_>>>()?;
        let written = document(options, split, shapes);
        let mut instances = [0; 6];
        for a in &written.annotations {
            instances[a.category_id as usize - 1] += 1;
        }
        write_public(&annotations, &serde_json::to_vec(&written).map_err(|e| Error::io(&annotations, e.into()))?)?;
        splits.push(SplitSummary { split, annotations, images_dir, images: count, instances });
    }
    Ok(ShapesSummary { splits, written: true })
}

/// Marks a folder as one that this program fills. Fails if the folder holds other files.
fn claim(dir: &Path) -> Result<()> {
    let mark = dir.join(".upres-shapes");
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
            fs::read_dir(dir).map_err(|e| Error::io(dir, e))?
        }
        Err(e) => return Err(Error::io(dir, e)),
    };
    let is_ours = || {
        let text = fs::read_to_string(paths(dir, Split::Train).0).unwrap_or_default();
        text.get(..100).is_some_and(|start| start.contains("\"upres shapes, "))
    };
    if !mark.exists() && entries.next().is_some() && !is_ours() {
        return Err(Error::data(dir, "this folder holds files that `dataset shapes` did not make: choose another one"));
    }
    fs::write(&mark, "made by upres: `train` may make what is here anew\n").map_err(|e| Error::io(&mark, e))
}

/// Like [`generate`], but writes nothing if `dir` already holds the complete data set of the same options.
pub fn ensure(dir: &Path, options: &ShapesOptions) -> Result<ShapesSummary> {
    options.check()?;
    match options.splits().map(|(split, count)| find(dir, options, split, count)).collect() {
        Some(splits) => Ok(ShapesSummary { splits, written: false }),
        None => generate(dir, options),
    }
}

/// A part of the data set in `dir`. None if it is missing, incomplete, or of other options.
fn find(dir: &Path, options: &ShapesOptions, split: Split, count: usize) -> Option<SplitSummary> {
    let (annotations, images_dir) = paths(dir, split);
    let found: Found = serde_json::from_slice(&fs::read(&annotations).ok()?).ok()?;
    let complete = found.info == Info::new(options, split)
        && found.images.len() == count
        && found.images.iter().all(|i| images_dir.join(&i.file_name).is_file());
    let mut instances = [0; 6];
    for a in &found.annotations {
        *instances.get_mut((a.category_id as usize).checked_sub(1)?)? += 1;
    }
    complete.then_some(SplitSummary { split, annotations, images_dir, images: count, instances })
}

fn paths(dir: &Path, split: Split) -> (PathBuf, PathBuf) {
    (dir.join("annotations").join(format!("{}.json", split.name())), dir.join("images").join(split.name()))
}

fn file_name(options: &ShapesOptions, split: Split, index: usize) -> String {
    format!("{:06}.png", options.first(split) + index + 1)
}

fn document(options: &ShapesOptions, split: Split, pictures: Vec<(usize, usize, Vec<VisibleShape>)>) -> Written {
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for (i, (width, height, shapes)) in pictures.into_iter().enumerate() {
        let image_id = options.first(split) + i + 1;
        images.push(ImageEntry { id: image_id, file_name: file_name(options, split, i), width, height, license: 1 });
        for s in shapes {
            let [x0, y0, x1, y1] = s.bbox;
            annotations.push(AnnotationEntry {
                id: annotations.len() + 1,
                image_id,
                category_id: s.class.id(),
                bbox: [x0, y0, x1 - x0, y1 - y0],
                area: s.area,
                segmentation: s.polygons.iter().map(|p| p.iter().flatten().copied().collect()).collect(),
                iscrowd: 0,
            });
        }
    }
    let categories =
        Class::ALL.iter().map(|c| Category { id: c.id(), name: c.name(), supercategory: "shape" }).collect();
    let license = License { id: 1, name: "CC0 1.0", url: "https://creativecommons.org/publicdomain/zero/1.0/" };
    Written { info: Info::new(options, split), licenses: [license], images, annotations, categories }
}

/// Encodes RGB bytes as a PNG file. The encoder's settings are fixed, because the same seed must give the same bytes.
pub(crate) fn encode_png(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    use image::{ExtendedColorType, ImageEncoder};
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(rgb, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::value("png", format!("{width}x{height}: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polygons_are_the_visible_masks_also_for_the_coco_api() {
        let options = ShapesOptions::default();
        let (mut worst, mut sum, mut n) = (1.0f64, 0.0, 0.0);
        for image in 0..60 {
            let mut rng = Stream::new(3, 0, 0, image, Purpose::Test).rng();
            let (w, h) = (options.size.0 as usize, options.size.1 as usize);
            let scene = scene::Scene::new(&mut rng, w, h, options.objects);
            for i in 0..scene.shapes.len() {
                let mask = scene.visible(i);
                let polygons = mask.polygons();
                assert!(mask.iou(&polygons) >= trace::MIN_IOU, "image {image} shape {i}");
                let flat: Vec<Vec<f64>> = polygons.iter().map(|p| p.iter().flatten().copied().collect()).collect();
                let other = hotcoco::mask::decode(&hotcoco::mask::fr_polys(&flat, h as u32, w as u32).unwrap());
                let (mut both, mut any) = (0, 0);
                for y in 0..h {
                    for x in 0..w {
                        let inside = (mask.x0..mask.x0 + mask.w).contains(&x)
                            && (mask.y0..mask.y0 + mask.h).contains(&y)
                            && mask.bits[(y - mask.y0) * mask.w + x - mask.x0];
                        let theirs = other[x * h + y] != 0; // column by column
                        both += usize::from(inside && theirs);
                        any += usize::from(inside || theirs);
                    }
                }
                let iou = both as f64 / any as f64;
                worst = worst.min(iou);
                sum += iou;
                n += 1.0;
            }
        }
        assert!(worst >= 0.9 && sum / n >= 0.98, "worst {worst}, mean {}", sum / n);
    }
}
