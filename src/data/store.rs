//! The pictures of a data set. They are decoded on demand, kept in memory if all of them fit, and bad ones are counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use super::coco::Dataset;
use super::decode::{Image, decode_file};
use crate::error::{Error, Result};

/// How to treat a picture that is missing, corrupt, or of another size than annotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadImages {
    /// Stop with an error that names the picture.
    #[default]
    Fail,
    /// Go on without it, and list it: training draws another picture instead, and an evaluation counts it as a picture
    /// where nothing was found.
    Skip,
}

/// The pictures of a data set. Consecutive stages share one store, and with it the pictures that are already decoded.
#[derive(Debug)]
pub struct ImageStore {
    dataset: Arc<Dataset>,
    bad_images: BadImages,
    /// One cell for each picture; empty if pictures are not kept.
    cache: Vec<OnceLock<Arc<Image>>>,
    skipped: Mutex<BTreeMap<usize, String>>,
}

impl ImageStore {
    /// Makes a store. Decoded pictures are kept if all of them together need at most `cache_bytes`.
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

    /// Index and reason of each picture that was skipped.
    pub fn skipped(&self) -> Vec<(usize, String)> {
        let list = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().map(|(i, m)| (*i, m.clone())).collect()
    }

    /// Picture `index`. None if it is bad and bad pictures are skipped.
    pub fn get(&self, index: usize) -> Result<Option<Arc<Image>>> {
        if let Some(image) = self.cache.get(index).and_then(OnceLock::get) {
            return Ok(Some(Arc::clone(image)));
        }
        match self.read(index) {
            Ok(image) => {
                let image = Arc::new(image);
                if let Some(cell) = self.cache.get(index) {
                    // Another worker may have stored the same picture first; its bytes are the same.
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

/// Fails if an image file has another size than the annotation file says.
pub(super) fn check_size(dataset: &Dataset, index: usize, (width, height): (u32, u32)) -> Result<(), String> {
    let info = &dataset.images[index];
    if (info.width, info.height) == (width, height) {
        return Ok(());
    }
    let hint = if (info.width, info.height) == (height, width) {
        "the sides are exchanged: were the boxes made without the file's EXIF orientation? Turn the pixels and remove \
         the tag"
    } else {
        "the boxes would not fit: correct width and height, or use the file that was annotated"
    };
    let (w, h) = (info.width, info.height);
    Err(format!(
        "image {}: the file has {width} × {height} pixels, the annotation file says {w} × {h}: {hint}",
        info.id
    ))
}
