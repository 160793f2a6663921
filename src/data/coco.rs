//! COCO annotation files. Reading is tolerant: a bad entry is a [finding](super::findings), dropped and counted;
//! only what leaves no data set (no file, broken JSON, no `images`, ids that name two things) is an error.
//!
//! What is used in training follows mmdetection's `CocoDataset`: boxes of no area, below a pixel or outside the image
//! are dropped, crowd regions are not ground truth, images below 32 pixels or without ground truth are left out.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::decode;
use super::findings::{EXAMPLES, FindingKind, Findings};
use super::raw::{self, RawAnnotation, RawBox, RawCategory, RawImage};
use crate::error::{Error, Result};

/// One entry of `images`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// `id` of the annotation file.
    pub id: i64,
    /// Relative to the image folder.
    pub file_name: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// One entry of `categories`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// `id` of the annotation file.
    pub id: i64,
    /// Its name.
    pub name: String,
}

/// One annotation with a known image, a known category and a finite box.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// `id` of the annotation file; -1 where it has none.
    pub id: i64,
    /// Index into [`Dataset::categories`].
    pub class: u32,
    /// `bbox` as it is in the file: x, y, width, height.
    pub bbox: [f64; 4],
    /// x0, y0, x1, y1, clipped to the image.
    pub xyxy: [f32; 4],
    /// `area`, or that of the box where the file has none.
    pub area: f64,
    /// A region of many objects.
    pub iscrowd: bool,
    /// Whether it is ground truth in training.
    pub usable: bool,
    /// The JSON text of `segmentation`, where [`ReadOptions::segmentation`] asked for it.
    pub segmentation: Option<Box<str>>,
}

/// How to read an annotation file.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// Keep the text of `segmentation` (for COCO's training set, about 400 MB).
    pub segmentation: bool,
    /// Examples kept of each kind of finding.
    pub examples: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { segmentation: false, examples: EXAMPLES }
    }
}

/// Which images are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainFilter {
    /// Leave out images without ground truth.
    pub empty_gt: bool,
    /// Leave out images with a side below this.
    pub min_image_size: u32,
}

impl Default for TrainFilter {
    fn default() -> Self {
        Self { empty_gt: true, min_image_size: 32 }
    }
}

/// A data set: images, classes, annotations, and what was wrong with the file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The annotation file.
    pub path: PathBuf,
    /// The folder that file names are relative to.
    pub images_dir: PathBuf,
    /// Images in the order of the file.
    pub images: Vec<ImageInfo>,
    /// Categories by ascending id: the index is the class.
    pub categories: Vec<Category>,
    /// Annotations of each image, in the order of the file.
    pub annotations: Vec<Vec<Annotation>>,
    /// What was dropped, repaired or odd.
    pub findings: Findings,
}

impl Dataset {
    /// Reads `annotations`; the images are files in `images`. Fatal findings are an error.
    pub fn load(annotations: impl AsRef<Path>, images: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(annotations, images, ReadOptions::default())
    }

    /// As [`Dataset::load`], with options.
    pub fn load_with(annotations: impl AsRef<Path>, images: impl AsRef<Path>, options: ReadOptions) -> Result<Self> {
        let dataset = Self::read(annotations, images, options)?;
        match dataset.findings.fatal() {
            Some(message) => Err(Error::data(&dataset.path, message)),
            None => Ok(dataset),
        }
    }

    /// As [`Dataset::load_with`], but fatal findings are only listed in `findings`: what `dataset check` wants.
    pub fn read(annotations: impl AsRef<Path>, images: impl AsRef<Path>, options: ReadOptions) -> Result<Self> {
        let (path, images_dir) = (annotations.as_ref(), images.as_ref());
        let bytes = raw::read_bytes(path, "annotation file")?;
        let text = raw::make_json(&bytes);
        let file = raw::parse(path, &text)?;
        let mut reader = Reader {
            options,
            dataset: Dataset {
                path: path.to_path_buf(),
                images_dir: images_dir.to_path_buf(),
                images: Vec::new(),
                categories: Vec::new(),
                annotations: Vec::new(),
                findings: Findings::new(options.examples),
            },
            image_index: HashMap::new(),
            dropped_images: HashMap::new(),
            class_of: HashMap::new(),
            annotation_ids: HashMap::new(),
        };
        reader.images(file.images.unwrap_or_default());
        reader.categories(file.categories.unwrap_or_default());
        for (i, a) in file.annotations.unwrap_or_default().into_iter().enumerate() {
            reader.annotation(i, a);
        }
        Ok(reader.finish())
    }

    /// A data set of image files alone: no annotations, sizes from the files' headers, ids counted from 1.
    pub fn from_files(files: &[PathBuf], categories: Vec<Category>) -> Result<Self> {
        let mut images = Vec::with_capacity(files.len());
        for (i, file) in files.iter().enumerate() {
            let (width, height) = decode::image_size(file)?;
            let name = file.to_str().ok_or_else(|| Error::data(file, "its name is not UTF-8: rename the file"))?;
            images.push(ImageInfo { id: i as i64 + 1, file_name: name.into(), width, height });
        }
        Ok(Self {
            path: files.first().cloned().unwrap_or_default(),
            images_dir: PathBuf::new(),
            annotations: vec![Vec::new(); images.len()],
            images,
            categories,
            findings: Findings::default(),
        })
    }

    /// The file of image `index`.
    pub fn image_path(&self, index: usize) -> PathBuf {
        self.images_dir.join(&self.images[index].file_name)
    }

    /// Names of the classes, by class index.
    pub fn class_names(&self) -> Vec<String> {
        self.categories.iter().map(|c| c.name.clone()).collect()
    }

    /// Ground truth of image `index` in training.
    pub fn ground_truth(&self, index: usize) -> impl Iterator<Item = &Annotation> {
        self.annotations[index].iter().filter(|a| a.usable)
    }

    /// The largest number of ground-truth boxes of an image, rounded up to a multiple of 8, at least 8: what every
    /// image of a batch is padded to.
    pub fn max_gt(&self) -> usize {
        let most = (0..self.images.len()).map(|i| self.ground_truth(i).count()).max().unwrap_or(0);
        most.max(1).next_multiple_of(8)
    }

    /// Indices of the images to train on. None left is an error that says why.
    pub fn training_images(&self, filter: TrainFilter) -> Result<Vec<usize>> {
        let large = |i: &usize| self.images[*i].width.min(self.images[*i].height) >= filter.min_image_size;
        let filled = |i: &usize| !filter.empty_gt || self.ground_truth(*i).next().is_some();
        let used: Vec<usize> = (0..self.images.len()).filter(large).filter(filled).collect();
        if used.is_empty() {
            let n = self.images.len();
            let small = (0..n).filter(|i| !large(i)).count();
            let empty = (0..n).filter(|i| !filled(i)).count();
            let message = format!(
                "no image to train on: of {n}, {small} have a side below {} pixels and {empty} have no ground truth: \
                 run `dataset check` on the file",
                filter.min_image_size
            );
            return Err(Error::data(&self.path, message));
        }
        Ok(used)
    }

    /// What is there and what is left out, in a few lines.
    pub fn summary(&self) -> Summary<'_> {
        Summary(self)
    }
}

/// Prints what [`Dataset::summary`] promises.
pub struct Summary<'a>(&'a Dataset);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = self.0;
        let all: usize = d.annotations.iter().map(Vec::len).sum();
        let used = (0..d.images.len()).map(|i| d.ground_truth(i).count()).sum::<usize>();
        writeln!(
            f,
            "{}: {} images, {} classes, {used} boxes to train on ({all} readable annotations)",
            d.path.display(),
            d.images.len(),
            d.categories.len()
        )?;
        for (kind, group) in d.findings.groups() {
            let (what, action) = kind.text();
            let example = group.examples.first().map_or(String::new(), |e| format!(" (first: {e})"));
            writeln!(f, "  {}: {} × {what}{example}: {action}", kind.severity(), group.count)?;
        }
        Ok(())
    }
}

/// State of [`Dataset::read`].
struct Reader {
    options: ReadOptions,
    dataset: Dataset,
    image_index: HashMap<i64, usize>,
    /// Ids of images that were dropped: their annotations are dropped without a finding of their own.
    dropped_images: HashMap<i64, ()>,
    class_of: HashMap<i64, u32>,
    /// Annotation ids seen, with image and place in its list.
    annotation_ids: HashMap<i64, (usize, usize)>,
}

impl Reader {
    fn images(&mut self, list: Vec<RawImage>) {
        use FindingKind::*;
        let mut names: HashMap<String, i64> = HashMap::with_capacity(list.len());
        for (i, raw) in list.into_iter().enumerate() {
            let d = &mut self.dataset;
            let (Some(id), Some(file_name)) = (raw.id.id(), raw.file_name.text().filter(|t| !t.is_empty())) else {
                d.findings.add(BadImageEntry, || format!("images[{i}]: id {}, file_name {}", raw.id, raw.file_name));
                raw.id.id().map(|id| self.dropped_images.insert(id, ()));
                continue;
            };
            if let Some(&first) = self.image_index.get(&id) {
                let other = &d.images[first].file_name;
                d.findings.add(DuplicateImageId, || format!("image {id}: {other} and {file_name}"));
                continue;
            }
            let size = match (raw.width.size(), raw.height.size()) {
                (Some(w), Some(h)) => Ok((w, h)),
                _ => decode::image_size(d.images_dir.join(&file_name)),
            };
            let (width, height) = match size {
                Ok(size) => size,
                Err(e) => {
                    d.findings.add(BadImageEntry, || {
                        let (w, h) = (&raw.width, &raw.height);
                        format!("image {id} ({file_name}): width {w}, height {h}, and the file does not tell: {e}")
                    });
                    self.dropped_images.insert(id, ());
                    continue;
                }
            };
            if raw.width.size().is_none() || raw.height.size().is_none() {
                d.findings.add(MissingSize, || format!("image {id} ({file_name}): {width} × {height}"));
            }
            if let Some(other) = names.insert(file_name.clone(), id) {
                d.findings.add(DuplicateFileName, || format!("{file_name}: images {other} and {id}"));
            }
            if width.min(height) < TrainFilter::default().min_image_size {
                d.findings.add(SmallImage, || format!("image {id} ({file_name}): {width} × {height}"));
            }
            self.image_index.insert(id, d.images.len());
            d.images.push(ImageInfo { id, file_name, width, height });
        }
        if self.dataset.images.is_empty() {
            self.dataset.findings.add(NoImages, || "key `images`".into());
        }
        self.dataset.annotations = vec![Vec::new(); self.dataset.images.len()];
    }

    fn categories(&mut self, list: Vec<RawCategory>) {
        use FindingKind::*;
        let d = &mut self.dataset;
        let mut names: HashMap<String, i64> = HashMap::new();
        for (i, raw) in list.into_iter().enumerate() {
            let Some(id) = raw.id.id() else {
                d.findings.add(BadCategoryEntry, || format!("categories[{i}]: id {}, name {}", raw.id, raw.name));
                continue;
            };
            let name = raw.name.text().unwrap_or_else(|| format!("category {id}"));
            if let Some(first) = d.categories.iter().find(|c| c.id == id) {
                let kind = if first.name == name { BadCategoryEntry } else { DuplicateCategoryId };
                d.findings.add(kind, || format!("category {id}: {:?} and {name:?}", first.name));
                continue;
            }
            if let Some(other) = names.insert(name.clone(), id) {
                d.findings.add(DuplicateCategoryName, || format!("{name:?}: categories {other} and {id}"));
            }
            d.categories.push(Category { id, name });
        }
        d.categories.sort_by_key(|c| c.id);
        self.class_of = d.categories.iter().enumerate().map(|(k, c)| (c.id, k as u32)).collect();
        if d.categories.is_empty() {
            d.findings.add(NoCategories, || "key `categories`".into());
        }
    }

    fn annotation(&mut self, i: usize, raw: RawAnnotation) {
        use FindingKind::*;
        let findings = &mut self.dataset.findings;
        let who = || match raw.id.id() {
            Some(id) => format!("annotation {id}"),
            None => format!("annotations[{i}]"),
        };
        let (Some(image_id), Some(category_id)) = (raw.image_id.id(), raw.category_id.id()) else {
            return findings.add(BadAnnotationEntry, || {
                format!("{}: image_id {}, category_id {}", who(), raw.image_id, raw.category_id)
            });
        };
        let Some(&index) = self.image_index.get(&image_id) else {
            if !self.dropped_images.contains_key(&image_id) {
                findings.add(UnknownImageId, || format!("{}: image_id {image_id}", who()));
            }
            return;
        };
        let image = &self.dataset.images[index];
        let place = || format!("{}, image {image_id} ({})", who(), image.file_name);
        let Some(&class) = self.class_of.get(&category_id) else {
            return findings.add(UnknownCategoryId, || format!("{}: category_id {category_id}", place()));
        };
        let bbox = match raw.bbox {
            RawBox::Four(b) => b,
            RawBox::Missing => return findings.add(BadBox, || format!("{}: no bbox", place())),
            RawBox::Other(n) => return findings.add(BadBox, || format!("{}: bbox of {n} elements", place())),
        };
        if bbox.iter().any(|v| !v.is_finite() || v.abs() > 1e9) {
            return findings.add(NonFiniteBox, || format!("{}: bbox {bbox:?}", place()));
        }
        let area = raw.area.number();
        let id = raw.id.id().unwrap_or(-1);
        let mut annotation = Annotation {
            id,
            class,
            bbox,
            xyxy: clip(bbox, image),
            area: area.unwrap_or(bbox[2] * bbox[3]),
            iscrowd: raw.iscrowd.flag(),
            usable: true,
            segmentation: raw.segmentation.filter(|_| self.options.segmentation).map(|s| s.get().into()),
        };
        if let Some(&(other, at)) = self.annotation_ids.get(&id).filter(|_| id >= 0) {
            let first = &self.dataset.annotations[other][at];
            if other == index && first.class == class && first.bbox == bbox && first.iscrowd == annotation.iscrowd {
                return findings.add(RepeatedAnnotation, place);
            }
            findings.add(DuplicateAnnotationId, place);
        }
        let dropped = unusable(&annotation, image, raw.ignore.flag(), area);
        if let Some(kind) = dropped {
            annotation.usable = false;
            findings.add(kind, || match kind {
                BadArea => format!("{}: area {}", place(), raw.area),
                OutsideBox => format!("{}: bbox {bbox:?}, image {} × {}", place(), image.width, image.height),
                _ => format!("{}: bbox {bbox:?}", place()),
            });
        } else {
            let (w, h) = (f64::from(image.width), f64::from(image.height));
            let out = (-bbox[0]).max(-bbox[1]).max(bbox[0] + bbox[2] - w).max(bbox[1] + bbox[3] - h);
            if out > 1.0 {
                findings.add(PartlyOutside, || format!("{}: bbox {bbox:?}, image {w} × {h}", place()));
            }
        }
        self.annotation_ids.insert(id, (index, self.dataset.annotations[index].len()));
        self.dataset.annotations[index].push(annotation);
    }

    fn finish(self) -> Dataset {
        let mut d = self.dataset;
        for (image, list) in d.images.iter().zip(&d.annotations) {
            let who = || format!("image {} ({})", image.id, image.file_name);
            if !list.iter().any(|a| a.usable) {
                let crowd = list.iter().any(|a| a.iscrowd);
                d.findings.add(if crowd { FindingKind::CrowdOnly } else { FindingKind::NoGroundTruth }, who);
            }
            let mut seen: HashMap<(u32, [u32; 4]), i64> = HashMap::with_capacity(list.len());
            for a in list.iter().filter(|a| a.usable) {
                if let Some(other) = seen.insert((a.class, a.xyxy.map(f32::to_bits)), a.id) {
                    d.findings
                        .add(FindingKind::DuplicateBox, || format!("annotations {other} and {}, {}", a.id, who()));
                }
            }
        }
        d
    }
}

/// The corners of a box, clipped to its image.
fn clip(bbox: [f64; 4], image: &ImageInfo) -> [f32; 4] {
    let (w, h) = (f64::from(image.width), f64::from(image.height));
    let x0 = bbox[0].clamp(0.0, w);
    let y0 = bbox[1].clamp(0.0, h);
    let x1 = (bbox[0] + bbox[2]).clamp(x0, w.max(x0));
    let y1 = (bbox[1] + bbox[3]).clamp(y0, h.max(y0));
    [x0 as f32, y0 as f32, x1 as f32, y1 as f32]
}

/// Why an annotation is not ground truth, if so. `area` is the file's, where it has one.
fn unusable(a: &Annotation, image: &ImageInfo, ignore: bool, area: Option<f64>) -> Option<FindingKind> {
    use FindingKind::*;
    let [x, y, w, h] = a.bbox;
    let inside_w = (x + w).min(f64::from(image.width)) - x.max(0.0);
    let inside_h = (y + h).min(f64::from(image.height)) - y.max(0.0);
    if w < 0.0 || h < 0.0 {
        Some(NegativeBox)
    } else if w == 0.0 || h == 0.0 {
        Some(EmptyBox)
    } else if inside_w <= 0.0 || inside_h <= 0.0 {
        Some(OutsideBox)
    } else if inside_w < 1.0 || inside_h < 1.0 {
        Some(SmallBox)
    } else if area.is_some_and(|v| v.is_nan() || v <= 0.0) {
        Some(BadArea)
    } else if a.iscrowd {
        Some(Crowd)
    } else if ignore {
        Some(IgnoreFlag)
    } else {
        None
    }
}
