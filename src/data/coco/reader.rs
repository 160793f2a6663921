//! From an annotation file to a [`Dataset`]: decides for each entry whether it can be used, and records what is wrong.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::dataset::{Annotation, Category, Dataset, ImageInfo, Masks, ReadOptions, TrainFilter};
use super::findings::{FindingKind, Findings, MAX_COORDINATE};
use super::left_out::LeftOut;
use super::raw::{self, Loose, RawAnnotation, RawBox, RawCategory, RawFile, RawImage};
use super::segmentation::{self, Parsed};
use crate::data::decode;
use crate::data::toggles::MaskScratch;
use crate::error::{Error, Result};

impl Dataset {
    /// Reads the annotation file `annotations`; the image files are in the folder `images`. Fatal findings are an
    /// error.
    pub fn load(annotations: impl AsRef<Path>, images: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(annotations, images, ReadOptions::default())
    }

    /// Like [`Dataset::load`], with options.
    pub fn load_with(annotations: impl AsRef<Path>, images: impl AsRef<Path>, options: ReadOptions) -> Result<Self> {
        let dataset = Self::read(annotations, images, options)?;
        if let Some(message) = dataset.findings.fatal() {
            return Err(Error::data(&dataset.path, message));
        }
        if options.masks == Masks::Train {
            dataset.expect_masks()?;
        }
        Ok(dataset)
    }

    /// Like [`Dataset::load_with`], but fatal findings are only listed in `findings`, as `dataset check` needs them.
    pub fn read(annotations: impl AsRef<Path>, images: impl AsRef<Path>, options: ReadOptions) -> Result<Self> {
        let (path, images_dir) = (annotations.as_ref(), images.as_ref());
        let bytes = raw::read_bytes(path, "annotation file")?;
        let text = raw::make_json(&bytes);
        let file = raw::parse(path, &text)?;
        let empty = Self {
            path: path.to_path_buf(),
            images_dir: images_dir.to_path_buf(),
            images: Vec::new(),
            categories: Vec::new(),
            annotations: Vec::new(),
            findings: Findings::new(options.examples),
            left_out: LeftOut::default(),
        };
        Ok(Reader::new(empty, options).read(file))
    }

    /// Makes a data set of image files without annotations: sizes come from the files' headers, ids count from 1.
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
            left_out: LeftOut::default(),
        })
    }
}

/// Why an annotation is not used, and the index of its image, if that is known.
type Lost = (FindingKind, Option<usize>);

/// State of [`Dataset::read`]: the data set so far, and tables from ids to indices.
struct Reader {
    options: ReadOptions,
    dataset: Dataset,
    image_index: HashMap<i64, usize>,
    /// Ids of the images that were dropped, and why. Their annotations are dropped without a finding of their own.
    dropped_images: HashMap<i64, FindingKind>,
    class_of: HashMap<i64, u32>,
    /// For each annotation id seen: index of the image, and place in the image's list.
    annotation_ids: HashMap<i64, (usize, usize)>,
}

impl Reader {
    /// Starts from a data set that has its paths and nothing else.
    fn new(dataset: Dataset, options: ReadOptions) -> Self {
        let (image_index, dropped_images) = (HashMap::new(), HashMap::new());
        let (class_of, annotation_ids) = (HashMap::new(), HashMap::new());
        Self { options, dataset, image_index, dropped_images, class_of, annotation_ids }
    }

    /// Adds all entries of a file.
    fn read(mut self, file: RawFile) -> Dataset {
        self.images(file.images.unwrap_or_default());
        self.categories(file.categories.unwrap_or_default());
        let annotations = file.annotations.unwrap_or_default();
        self.dataset.left_out.listed_annotations = annotations.len();
        let masks = self.masks(&annotations).into_iter().chain(std::iter::repeat_with(Parsed::default));
        for ((i, a), mask) in annotations.into_iter().enumerate().zip(masks) {
            if let Some((kind, index)) = self.annotation(i, &a, mask) {
                self.dataset.left_out.add_annotation(kind, index);
            }
        }
        self.finish()
    }

    fn images(&mut self, list: Vec<RawImage>) {
        use FindingKind::*;
        let mut names: HashMap<String, i64> = HashMap::with_capacity(list.len());
        self.dataset.left_out.listed_images = list.len();
        for (i, raw) in list.into_iter().enumerate() {
            let d = &mut self.dataset;
            let (Some(id), Some(file_name)) = (raw.id.id(), raw.file_name.text().filter(|t| !t.is_empty())) else {
                d.findings.add(BadImageEntry, || format!("images[{i}]: id {}, file_name {}", raw.id, raw.file_name));
                d.left_out.add_image(BadImageEntry);
                raw.id.id().map(|id| self.dropped_images.insert(id, BadImageEntry));
                continue;
            };
            if let Some(&first) = self.image_index.get(&id) {
                let other = &d.images[first].file_name;
                d.left_out.add_image(DuplicateImageId);
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
                    d.left_out.add_image(UnknownSize);
                    d.findings.add(UnknownSize, || {
                        let (w, h) = (&raw.width, &raw.height);
                        format!("image {id} ({file_name}): width {w}, height {h}, and the file does not tell: {e}")
                    });
                    self.dropped_images.insert(id, UnknownSize);
                    continue;
                }
            };
            let sides = [&raw.width, &raw.height];
            if sides.contains(&&Loose::None) {
                d.findings.add(MissingSize, || format!("image {id} ({file_name}): {width} × {height}"));
            } else if sides.iter().any(|side| side.size().is_none()) {
                d.findings.add(BadSize, || {
                    let [w, h] = sides;
                    format!("image {id} ({file_name}): width {w}, height {h}, the file has {width} × {height}")
                });
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

    /// Reads the masks of all annotations and rasterises each once, on all cores. An empty list if masks are not
    /// wanted.
    fn masks(&self, annotations: &[RawAnnotation]) -> Vec<Parsed> {
        if self.options.masks == Masks::Skip {
            return Vec::new();
        }
        let read = |scratch: &mut MaskScratch, raw: &RawAnnotation| {
            let index = raw.image_id.id().and_then(|id| self.image_index.get(&id));
            let Some(image) = index.map(|&i| &self.dataset.images[i]) else { return Parsed::default() };
            let bbox = match raw.bbox {
                RawBox::Four(b) if is_finite(b) && b[2] > 0.0 && b[3] > 0.0 => Some(b),
                _ => None,
            };
            segmentation::parse(raw.segmentation.map(|s| s.get()), (image.width, image.height), bbox, scratch)
        };
        annotations.par_iter().map_init(MaskScratch::default, read).collect()
    }

    /// Finds the image, the class and the box of an annotation, or says which is missing. The missing part is also
    /// added to the findings, except when the image was dropped: its own finding covers its annotations.
    fn locate(&mut self, at: usize, raw: &RawAnnotation) -> Result<Located, Lost> {
        use FindingKind::*;
        let findings = &mut self.dataset.findings;
        let mut lose = |kind, index, example: &dyn Fn() -> String| {
            findings.add(kind, example);
            Err((kind, index))
        };
        let (Some(image_id), Some(category_id)) = (raw.image_id.id(), raw.category_id.id()) else {
            return lose(BadAnnotationEntry, None, &|| {
                format!("{}: image_id {}, category_id {}", name(at, raw), raw.image_id, raw.category_id)
            });
        };
        let Some(&index) = self.image_index.get(&image_id) else {
            return match self.dropped_images.get(&image_id) {
                Some(kind) => Err((*kind, None)),
                None => lose(UnknownImageId, None, &|| format!("{}: image_id {image_id}", name(at, raw))),
            };
        };
        let image = &self.dataset.images[index];
        let place = || place(at, raw, image);
        let Some(&class) = self.class_of.get(&category_id) else {
            return lose(UnknownCategoryId, Some(index), &|| format!("{}: category_id {category_id}", place()));
        };
        match raw.bbox {
            RawBox::Four(bbox) if is_finite(bbox) => Ok(Located { index, class, bbox }),
            RawBox::Four(bbox) => lose(NonFiniteBox, Some(index), &|| format!("{}: bbox {bbox:?}", place())),
            RawBox::Missing => lose(BadBox, Some(index), &|| format!("{}: no bbox", place())),
            RawBox::Other(n) => lose(BadBox, Some(index), &|| format!("{}: bbox of {n} elements", place())),
        }
    }

    /// Adds an annotation. Returns why it is not used in training, or none if it is used or left out by design.
    fn annotation(&mut self, at: usize, raw: &RawAnnotation, mask: Parsed) -> Option<Lost> {
        use FindingKind::*;
        let Located { index, class, bbox } = match self.locate(at, raw) {
            Ok(located) => located,
            Err(lost) => return Some(lost),
        };
        let (findings, image) = (&mut self.dataset.findings, &self.dataset.images[index]);
        let place = || place(at, raw, image);
        let (id, area) = (raw.id.id().unwrap_or(-1), raw.area.number());
        let mut annotation = Annotation {
            id,
            class,
            bbox,
            xyxy: clip(bbox, image),
            area: area.unwrap_or(bbox[2] * bbox[3]),
            has_area: area.is_some(),
            iscrowd: raw.iscrowd.flag(),
            usable: true,
            segmentation: mask.mask,
        };
        if let Some(&(other, at)) = self.annotation_ids.get(&id).filter(|_| id >= 0) {
            let first = &self.dataset.annotations[other][at];
            if other == index && first.class == class && first.bbox == bbox && first.iscrowd == annotation.iscrowd {
                findings.add(RepeatedAnnotation, place);
                return None; // the first one stays
            }
            findings.add(DuplicateAnnotationId, place);
        }
        let mut lost = None;
        if self.options.masks == Masks::Train && annotation.segmentation.is_none() {
            annotation.usable = false;
            lost = mask.findings.first().map(|(kind, _)| *kind);
        }
        for (kind, detail) in mask.findings {
            let space = if detail.is_empty() { "" } else { ": " };
            findings.add(kind, || format!("{}{space}{detail}", place()));
        }
        if let Some(kind) = unusable(&annotation, image, raw.ignore.flag(), area) {
            annotation.usable = false;
            lost = Some(kind);
            findings.add(kind, || match kind {
                BadArea => format!("{}: area {}", place(), raw.area),
                OutsideBox => format!("{}: bbox {bbox:?}, image {} × {}", place(), image.width, image.height),
                _ => format!("{}: bbox {bbox:?}", place()),
            });
        } else if leaves(bbox, image) {
            let (w, h) = (image.width, image.height);
            findings.add(PartlyOutside, || format!("{}: bbox {bbox:?}, image {w} × {h}", place()));
        }
        self.annotation_ids.insert(id, (index, self.dataset.annotations[index].len()));
        let lost = lost.filter(|kind| !annotation.iscrowd && *kind != IgnoreFlag);
        lost.filter(|_| annotation.area < 0.0).iter().for_each(|kind| self.dataset.left_out.ignore(*kind));
        self.dataset.annotations[index].push(annotation);
        lost.map(|kind| (kind, Some(index)))
    }

    fn finish(self) -> Dataset {
        let mut d = self.dataset;
        // A data set without masks is an ordinary one: one finding says so, instead of one per annotation.
        let all: usize = d.annotations.iter().map(Vec::len).sum();
        if all > 0 && d.findings.count(FindingKind::MissingMask) == all {
            d.findings.remove(FindingKind::MissingMask);
            d.findings.add(FindingKind::NoMasks, || format!("{all} annotations"));
        }
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

/// The parts that every usable annotation has.
struct Located {
    /// Index of the image.
    index: usize,
    class: u32,
    bbox: [f64; 4],
}

/// The name in findings of the annotation at place `at` of the list.
fn name(at: usize, raw: &RawAnnotation) -> String {
    match raw.id.id() {
        Some(id) => format!("annotation {id}"),
        None => format!("annotations[{at}]"),
    }
}

/// Like [`name`], with the image.
fn place(at: usize, raw: &RawAnnotation, image: &ImageInfo) -> String {
    format!("{}, image {} ({})", name(at, raw), image.id, image.file_name)
}

/// Whether a box leaves its image by more than a pixel.
fn leaves(bbox: [f64; 4], image: &ImageInfo) -> bool {
    let (w, h) = (f64::from(image.width), f64::from(image.height));
    (-bbox[0]).max(-bbox[1]).max(bbox[0] + bbox[2] - w).max(bbox[1] + bbox[3] - h) > 1.0
}

/// Whether all numbers of a box are finite and at most [`MAX_COORDINATE`].
fn is_finite(bbox: [f64; 4]) -> bool {
    bbox.iter().all(|v| v.abs() <= MAX_COORDINATE)
}

/// Corners x0, y0, x1, y1 of a box, clipped to its image.
fn clip(bbox: [f64; 4], image: &ImageInfo) -> [f32; 4] {
    let (w, h) = (f64::from(image.width), f64::from(image.height));
    let x0 = bbox[0].clamp(0.0, w);
    let y0 = bbox[1].clamp(0.0, h);
    let x1 = (bbox[0] + bbox[2]).clamp(x0, w.max(x0));
    let y1 = (bbox[1] + bbox[3]).clamp(y0, h.max(y0));
    [x0 as f32, y0 as f32, x1 as f32, y1 as f32]
}

/// The reason why an annotation is not ground truth, if there is one. `area` is the file's `area`, if it has one.
fn unusable(a: &Annotation, image: &ImageInfo, ignore: bool, area: Option<f64>) -> Option<FindingKind> {
    use FindingKind::*;
    let [x, y, w, h] = a.bbox;
    let (width, height) = (f64::from(image.width), f64::from(image.height));
    let inside_w = (x + w).min(width) - x.max(0.0);
    let inside_h = (y + h).min(height) - y.max(0.0);
    if w < 0.0 || h < 0.0 {
        Some(NegativeBox)
    } else if w == 0.0 || h == 0.0 {
        Some(EmptyBox)
    } else if x >= width || y >= height || x + w <= 0.0 || y + h <= 0.0 {
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
