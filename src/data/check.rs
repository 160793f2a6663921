//! `dataset check`: finds everything that is wrong with a data set, in the annotation file and in the image files.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::coco::{Dataset, FindingKind, Findings, Masks, ReadOptions, Segmentation, Severity};
use super::decode::decode_file;
use super::store::check_size;
use crate::error::{Error, Result};
use crate::format::counted;

/// The result of [`check`].
#[derive(Debug)]
pub struct CheckReport {
    /// The data set with all findings, including those about image files.
    pub dataset: Dataset,
    /// Number of image files that decode and have the annotated size.
    pub decoded: usize,
    /// Time that decoding all of them took.
    pub took: Duration,
}

/// Reads `annotations` with its masks, decodes every image in `images` on all cores, and keeps `examples` of each kind
/// of finding. Fails only if the folder does not exist or the annotation file cannot be read at all.
pub fn check(annotations: &Path, images: &Path, examples: usize) -> Result<CheckReport> {
    expect_folder(images)?;
    let mut dataset = Dataset::read(annotations, images, ReadOptions { examples, masks: Masks::Read })?;
    let start = Instant::now();
    let outcomes: Vec<Option<(FindingKind, String)>> =
        (0..dataset.images.len()).into_par_iter().map(|i| check_image(&dataset, i)).collect();
    let took = start.elapsed();
    let decoded = outcomes.iter().filter(|o| o.is_none()).count();
    let mut findings = std::mem::replace(&mut dataset.findings, Findings::new(examples));
    if !dataset.images.is_empty() && dataset.annotations.iter().flatten().all(|a| !a.usable) {
        let listed = dataset.left_out.listed_annotations;
        findings.add(FindingKind::NoBoxes, || match listed {
            0 => "`annotations` is empty".into(),
            n => format!("of {n} annotations, none is ground truth"),
        });
    }
    for (kind, text) in outcomes.into_iter().flatten() {
        findings.add(kind, || text);
    }
    dataset.findings = findings;
    Ok(CheckReport { dataset, decoded, took })
}

/// Fails if the image folder does not exist: with one line, instead of one for each image.
pub fn expect_folder(images: &Path) -> Result<()> {
    let message = match std::fs::metadata(images) {
        _ if images.as_os_str().is_empty() => return Ok(()), // the annotation file has whole paths
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => "is a file, not the image folder: name the folder that the file names are relative to".into(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "image folder not found: check the path".into(),
        Err(e) => format!("image folder cannot be read: {e}"),
    };
    Err(Error::data(images, message))
}

/// The problem with an image file, if there is one.
fn check_image(dataset: &Dataset, index: usize) -> Option<(FindingKind, String)> {
    let (info, path) = (&dataset.images[index], dataset.image_path(index));
    if !path.exists() {
        return Some((FindingKind::MissingFile, format!("image {}: {}", info.id, path.display())));
    }
    match decode_file(&path) {
        Err(e) => Some((FindingKind::UnreadableFile, format!("image {}: {e}", info.id))),
        Ok(image) => {
            let text = check_size(dataset, index, (image.width, image.height)).err()?;
            Some((FindingKind::SizeMismatch, format!("{}: {text}", info.file_name)))
        }
    }
}

impl CheckReport {
    /// Whether training would refuse the data set.
    pub fn is_fatal(&self) -> bool {
        self.dataset.findings.fatal().is_some()
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = &self.dataset;
        let boxes: usize = (0..d.images.len()).map(|i| d.ground_truth(i).count()).sum();
        let n = d.images.len();
        let (images, classes) = (counted(n, "image"), counted(d.categories.len(), "class"));
        writeln!(f, "{}: {images}, {classes}, {} to train on", d.path.display(), counted(boxes, "box"))?;
        let masks: Vec<&Segmentation> =
            (0..n).flat_map(|i| d.ground_truth(i)).filter_map(|a| a.segmentation.as_ref()).collect();
        if !masks.is_empty() {
            let polygons = masks.iter().filter(|m| m.is_polygons()).count();
            let kib = masks.iter().map(|m| m.bytes()).sum::<usize>() / 1024;
            let runs = masks.len() - polygons;
            let masks = counted(masks.len(), "mask");
            writeln!(f, "{masks}: {polygons} of polygons, {runs} of run lengths ({kib} KiB in memory)")?;
        }
        let rate = self.decoded as f64 / self.took.as_secs_f64().max(1e-9);
        writeln!(f, "{} of {n} image files are good ({rate:.0} decoded per second)", self.decoded)?;
        write!(f, "{}", d.findings)?;
        let count =
            |s: Severity| d.findings.groups().filter(|(k, _)| k.severity() == s).map(|(_, g)| g.count).sum::<usize>();
        let (fatal, warnings) = (count(Severity::Fatal), count(Severity::Warning));
        match (fatal, warnings) {
            (0, 0) => write!(f, "good: ready to train"),
            (0, w) => write!(f, "usable: {}", counted(w, "warning")),
            (n, w) => write!(f, "not usable as it is: {n} fatal, {}", counted(w, "warning")),
        }
    }
}
