//! The pictures of a data set: decoded on demand, kept in memory where they all fit, bad ones counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::coco::Dataset;
use super::decode::{Image, decode_file};
use crate::error::{Error, Result};

/// What to do with a picture that is missing, corrupt, or of another size than annotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BadImages {
    /// Stop with an error that names it.
    #[default]
    Fail,
    /// Use another one instead, count and list it.
    Skip,
}

/// Pictures of a data set. Stages that follow each other share one, and with it what is already decoded.
#[derive(Debug)]
pub struct ImageStore {
    dataset: Arc<Dataset>,
    bad_images: BadImages,
    /// One cell for each picture, or none at all: then nothing is kept.
    cache: Vec<OnceLock<Arc<Image>>>,
    skipped: Mutex<BTreeMap<usize, String>>,
}

impl ImageStore {
    /// Pictures of `dataset`, decoded ones kept if all of them together need at most `cache_bytes`.
    pub fn new(dataset: Arc<Dataset>, bad_images: BadImages, cache_bytes: u64) -> Self {
        let bytes: u64 = dataset.images.iter().map(|i| u64::from(i.width) * u64::from(i.height) * 3).sum();
        let cells = if bytes <= cache_bytes { dataset.images.len() } else { 0 };
        Self {
            dataset,
            bad_images,
            cache: (0..cells).map(|_| OnceLock::new()).collect(),
            skipped: Mutex::new(BTreeMap::new()),
        }
    }

    /// The data set.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// Pictures that were skipped: index and reason.
    pub fn skipped(&self) -> Vec<(usize, String)> {
        let list = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().map(|(i, m)| (*i, m.clone())).collect()
    }

    /// Picture `index`; none if it is bad and bad ones are skipped.
    pub fn get(&self, index: usize) -> Result<Option<Arc<Image>>> {
        if let Some(image) = self.cache.get(index).and_then(OnceLock::get) {
            return Ok(Some(Arc::clone(image)));
        }
        match self.read(index) {
            Ok(image) => {
                let image = Arc::new(image);
                if let Some(cell) = self.cache.get(index) {
                    // Another worker may have been first with the same picture: same bytes, either will do.
                    let _ = cell.set(Arc::clone(&image));
                }
                Ok(Some(image))
            }
            Err(e) if self.bad_images == BadImages::Fail => Err(e),
            Err(e) => {
                self.skipped
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(index)
                    .or_insert_with(|| e.to_string());
                Ok(None)
            }
        }
    }

    fn read(&self, index: usize) -> Result<Image> {
        let path = self.dataset.image_path(index);
        let image = decode_file(&path)?;
        check_size(&self.dataset, index, (image.width, image.height)).map_err(|m| Error::data(&path, m))?;
        Ok(image)
    }
}

/// Compares the size of a file with the annotation file's.
pub(super) fn check_size(dataset: &Dataset, index: usize, (width, height): (u32, u32)) -> Result<(), String> {
    let info = &dataset.images[index];
    if (info.width, info.height) == (width, height) {
        return Ok(());
    }
    let hint = if (info.width, info.height) == (height, width) {
        "the sides are exchanged: were the boxes made without the file's EXIF orientation? Turn the pixels and remove the tag"
    } else {
        "the boxes would not fit: correct width and height, or use the file that was annotated"
    };
    let (w, h) = (info.width, info.height);
    Err(format!(
        "image {}: the file has {width} × {height} pixels, the annotation file says {w} × {h}: {hint}",
        info.id
    ))
}
