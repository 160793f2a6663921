//! Detections of a picture: boxes, classes, scores and masks in the picture's own pixels.
//!
//! Main types: [`Detection`], [`ImageDetections`].

use crate::data::ImageStore;
use crate::data::draw::DrawnObject;
use crate::detection::mask_paste::paste;
use crate::engine::RawDetection;
use crate::error::Result;
use crate::eval::{ResultBox, RleMask};

/// A final box, and its mask where the detector has masks.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// x0, y0, x1, y1 in original pixels, inside the image.
    pub bbox: [f32; 4],
    /// 0 to 1.
    pub score: f32,
    /// Class index.
    pub class: usize,
    /// Mask over the whole image.
    pub mask: Option<RleMask>,
}

impl Detection {
    /// Converts a detection of the engine. `size` is the image's (width, height); mask pixels of at least `threshold`
    /// are set.
    pub(super) fn new(raw: RawDetection, size: [u32; 2], threshold: f32) -> Detection {
        let RawDetection { bbox, score, class, mask_logits } = raw;
        let mask = (!mask_logits.is_empty()).then(|| {
            let side = mask_logits.len().isqrt();
            let probs: Vec<f32> = mask_logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
            let rle = paste(&probs, side, bbox, size[0] as usize, size[1] as usize, threshold);
            RleMask::from_counts((size[0], size[1]), rle.counts)
        });
        let ([w, h], [x0, y0, x1, y1]) = (size.map(|v| v as f32), bbox);
        Detection { bbox: [x0.clamp(0.0, w), y0.clamp(0.0, h), x1.clamp(0.0, w), y1.clamp(0.0, h)], score, class, mask }
    }

    /// The object to draw, with its mask.
    ///
    /// Errors: `Value` if the mask does not decode.
    pub fn drawn(&self) -> Result<DrawnObject> {
        let polygons = self.mask.as_ref().map(RleMask::outlines).transpose()?.unwrap_or_default();
        Ok(DrawnObject { bbox: self.bbox, class: self.class, score: Some(self.score), polygons, note: "" })
    }
}

/// Detections of one image.
pub struct ImageDetections {
    /// Index in the data set.
    pub index: usize,
    /// Best first, clipped to the image.
    pub found: Vec<Detection>,
}

/// Detections in COCO's results format.
pub fn to_results(all: &[ImageDetections], store: &ImageStore) -> Vec<ResultBox> {
    let dataset = store.dataset();
    let mut rows = Vec::new();
    for image in all {
        let image_id = dataset.images[image.index].id;
        rows.extend(image.found.iter().map(|d| {
            let [x0, y0, x1, y1] = d.bbox.map(f64::from);
            ResultBox {
                image_id,
                category_id: dataset.categories[d.class].id,
                bbox: [x0, y0, x1 - x0, y1 - y0],
                score: f64::from(d.score),
                segmentation: d.mask.clone(),
            }
        }));
    }
    rows
}
