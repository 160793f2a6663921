use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hotcoco::params::IouType;
use hotcoco::{COCO, COCOeval};
use rayon::prelude::*;

use super::errors::{Confusion, Look, Measured, TideTable, hotcoco_error};
use super::metrics::{ClassMetrics, Metrics, Overlap};
use super::results::ResultBox;
use crate::data::Dataset;
use crate::error::{Error, Result};

/// Which evaluator [`Evaluator::open`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskMetrics {
    /// Boxes only.
    Off,
    /// Boxes, and masks where the data set has a usable one.
    IfUsable,
    /// Boxes and masks; a data set without a usable mask is an error.
    Required,
}

/// The ground truth of a data set; measures detections against it.
///
/// hotcoco gets the parsed [`Dataset`], under numbers of its own, and never reads the file. It is stricter than
/// training about fields that no metric needs, and a training run must not end at its first evaluation.
#[derive(Clone)]
pub struct Evaluator {
    truth: Arc<COCO>,
    /// The same ground truth with masks.
    masks: Option<Arc<COCO>>,
    /// From image ids to hotcoco's numbers.
    images: HashMap<i64, u64>,
    /// From category ids to hotcoco's numbers.
    categories: HashMap<i64, u64>,
}

impl Evaluator {
    /// Makes an evaluator of boxes from all images and annotations, including those that training leaves out. hotcoco's
    /// numbers follow the ids, because pycocotools orders images and classes by id.
    pub fn new(dataset: &Dataset) -> Evaluator {
        Self::of(dataset, false)
    }

    /// Like [`Evaluator::new`], for masks too. The data set must have been read with masks. In the metrics of masks, an
    /// object without a usable mask counts as a crowd region of its box: it need not be found, and detections there do
    /// no harm.
    ///
    /// Errors: `Data` if no annotation has a mask.
    ///
    /// Cost: each polygon is rasterised once, on all cores; the run lengths of all masks are kept.
    pub fn with_masks(dataset: &Dataset) -> Result<Evaluator> {
        dataset.expect_masks()?;
        Ok(Self::of(dataset, true))
    }

    /// The evaluator that a detector with or without masks needs. If masks were wanted and cannot be measured, it
    /// measures boxes only, and the text says so and why.
    ///
    /// Errors: `Data` if masks are required and no annotation has one.
    pub fn open(dataset: &Dataset, masks: MaskMetrics) -> Result<(Evaluator, Option<String>)> {
        if masks == MaskMetrics::Off {
            return Ok((Self::new(dataset), None));
        }
        match Self::with_masks(dataset) {
            Ok(evaluator) => Ok((evaluator, None)),
            Err(why) if masks == MaskMetrics::Required => Err(why),
            Err(why) => Ok((Self::new(dataset), Some(format!("masks are not measured, only boxes: {why}")))),
        }
    }

    fn of(dataset: &Dataset, masks: bool) -> Evaluator {
        let mut order: Vec<usize> = (0..dataset.images.len()).collect();
        order.sort_by_key(|&i| dataset.images[i].id);
        let mut truth = hotcoco::Dataset::default();
        for (class, category) in dataset.categories.iter().enumerate() {
            let id = class as u64 + 1;
            truth.categories.push(hotcoco::Category { id, name: category.name.clone(), ..Default::default() });
        }
        for (image_id, &index) in (1..).zip(&order) {
            let image = &dataset.images[index];
            let (height, width) = (image.height, image.width);
            truth.images.push(hotcoco::Image { id: image_id, height, width, ..Default::default() });
            for a in &dataset.annotations[index] {
                truth.annotations.push(hotcoco::Annotation {
                    id: truth.annotations.len() as u64 + 1,
                    image_id,
                    category_id: u64::from(a.class) + 1,
                    bbox: Some(a.bbox),
                    area: Some(a.area),
                    iscrowd: a.iscrowd,
                    ..Default::default()
                });
            }
        }
        let masks = masks.then(|| {
            let mut truth = truth.clone();
            let of = order.iter().flat_map(|&i| dataset.annotations[i].iter().map(move |a| (a, &dataset.images[i])));
            let of: Vec<_> = of.collect();
            truth.annotations.par_iter_mut().zip(of).for_each(|(entry, (a, image))| match &a.segmentation {
                Some(mask) => {
                    let (size, counts) = ([image.height, image.width], mask.rle((image.width, image.height)).counts);
                    if !a.has_area {
                        // A detection has the size of its mask, so the object has it too.
                        entry.area = Some(counts.iter().skip(1).step_by(2).map(|&n| f64::from(n)).sum());
                    }
                    entry.segmentation = Some(hotcoco::Segmentation::UncompressedRle { size, counts });
                }
                // hotcoco makes a mask of the box.
                None => entry.iscrowd = true,
            });
            Arc::new(COCO::from_dataset(truth))
        });
        Evaluator {
            truth: Arc::new(COCO::from_dataset(truth)),
            masks,
            images: (1..).zip(&order).map(|(id, &i)| (dataset.images[i].id, id)).collect(),
            categories: (1..).zip(&dataset.categories).map(|(id, c)| (c.id, id)).collect(),
        }
    }

    /// Whether this evaluator measures masks.
    pub fn has_masks(&self) -> bool {
        self.masks.is_some()
    }

    /// Metrics of the boxes of all detections.
    ///
    /// Errors: `Value` if a detection names an image or a category that the annotation file does not have.
    pub fn evaluate(&self, detections: &[ResultBox]) -> Result<Metrics> {
        Ok(self.measure(detections, Overlap::Boxes, Look::default())?.metrics)
    }

    /// Metrics of the masks of all detections. Small, medium and large are decided by the area of the masks, not of the
    /// boxes.
    ///
    /// Errors: those of [`Evaluator::evaluate`]; `Value` if this evaluator was made without masks, or if a detection
    /// has no mask, one of another size than its image, or one that does not decode.
    pub fn evaluate_masks(&self, detections: &[ResultBox]) -> Result<Metrics> {
        Ok(self.measure(detections, Overlap::Masks, Look::default())?.metrics)
    }

    /// Metrics of boxes or of masks, with the error analyses that `look` asks for.
    ///
    /// Errors: those of [`Evaluator::evaluate`] or [`Evaluator::evaluate_masks`].
    pub fn measure(&self, detections: &[ResultBox], overlap: Overlap, look: Look) -> Result<Measured> {
        let (truth, found) = match overlap {
            Overlap::Boxes => (&self.truth, self.boxes(detections)?),
            Overlap::Masks => self.with_found_masks(detections)?,
        };
        let kind = match overlap {
            Overlap::Boxes => IouType::Bbox,
            Overlap::Masks => IouType::Segm,
        };
        let mut eval = COCOeval::new(Arc::clone(truth), found, kind);
        eval.evaluate().map_err(hotcoco_error)?;
        eval.accumulate();
        let lines = eval.summarize_lines();
        let numbers = eval.stats().and_then(|s| s.try_into().ok()).unwrap_or([-1.0; 12]);
        let metrics = Metrics { overlap, numbers, per_class: self.per_class(&eval), lines };
        let tide = look.tide.then(|| TideTable::new(&eval, overlap)).transpose()?;
        let confusion = look.confusion.map(|score| Confusion::new(&eval, score));
        Ok(Measured { metrics, tide, confusion })
    }

    /// Detections for hotcoco's metrics of boxes.
    fn boxes(&self, detections: &[ResultBox]) -> Result<COCO> {
        let mut rows: Vec<f64> = Vec::with_capacity(7 * detections.len());
        for d in detections {
            let (image, category) = self.numbers(d)?;
            let [x, y, w, h] = d.bbox;
            rows.extend([image as f64, x, y, w, h, d.score, category as f64]);
        }
        if detections.is_empty() {
            return Ok(self.nothing(&self.truth));
        }
        self.truth.load_res_anns(COCO::detections_from_rows(&rows, 7).map_err(hotcoco_error)?).map_err(hotcoco_error)
    }

    /// Ground truth and detections for hotcoco's metrics of masks.
    fn with_found_masks(&self, detections: &[ResultBox]) -> Result<(&Arc<COCO>, COCO)> {
        let truth = self.masks.as_ref().ok_or_else(|| {
            Error::value("evaluate", "no masks in the ground truth: make the evaluator with `Evaluator::with_masks`")
        })?;
        let row = |d: &ResultBox| {
            let (image_id, category_id) = self.numbers(d)?;
            let of = |what: String| Error::value("evaluate", format!("detection of image {}: {what}", d.image_id));
            let mask = d.segmentation.as_ref().ok_or_else(|| of("no segmentation: write its RLE".to_string()))?;
            let image = truth.get_img(image_id).map_or([0; 2], |i| [i.height, i.width]);
            if mask.size != image {
                return Err(of(format!("its mask has height and width {:?}, its image {image:?}", mask.size)));
            }
            mask.area_and_bbox().map_err(|e| of(e.to_string()))?;
            // No box is given: like pycocotools, hotcoco would take the object's size from it.
            Ok(hotcoco::Annotation {
                image_id,
                category_id,
                score: Some(d.score),
                segmentation: Some(hotcoco::Segmentation::CompressedRle {
                    size: mask.size,
                    counts: mask.counts.clone(),
                }),
                ..Default::default()
            })
        };
        // If several detections are wrong, the first one in their order is reported.
        let rows = detections.par_iter().map(row).collect::<Vec<Result<_>>>();
        let rows = rows.into_iter().collect::<Result<Vec<_>>>()?;
        let found =
            if rows.is_empty() { self.nothing(truth) } else { truth.load_res_anns(rows).map_err(hotcoco_error)? };
        Ok((truth, found))
    }

    /// hotcoco's numbers of a detection's image and category.
    fn numbers(&self, d: &ResultBox) -> Result<(u64, u64)> {
        let unknown =
            |what: &str, id: i64| Error::value("evaluate", format!("{what} {id} is not in the annotation file"));
        let image = *self.images.get(&d.image_id).ok_or_else(|| unknown("image_id", d.image_id))?;
        let category = self.categories.get(&d.category_id);
        Ok((image, *category.ok_or_else(|| unknown("category_id", d.category_id))?))
    }

    /// An empty list of detections.
    fn nothing(&self, truth: &COCO) -> COCO {
        COCO::from_dataset(hotcoco::Dataset {
            images: truth.dataset.images.clone(),
            categories: truth.dataset.categories.clone(),
            ..Default::default()
        })
    }

    fn per_class(&self, eval: &COCOeval) -> BTreeMap<String, ClassMetrics> {
        let Some(acc) = eval.accumulated() else { return BTreeMap::new() };
        let s = acc.shape;
        // Areas: all, small, medium, large.
        let mean = |k: usize, area: usize, thresholds: usize| {
            let values: Vec<f64> = (0..thresholds)
                .flat_map(|t| (0..s.r).map(move |r| (t, r)))
                .map(|(t, r)| acc.precision[acc.precision_idx(t, r, k, area, s.m - 1)])
                .filter(|&p| p > -1.0)
                .collect();
            if values.is_empty() { -1.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
        };
        let of = |k| ClassMetrics {
            ap: mean(k, 0, s.t),
            ap50: mean(k, 0, 1),
            small: mean(k, 1, s.t),
            medium: mean(k, 2, s.t),
            large: mean(k, 3, s.t),
        };
        acc.cat_ids.iter().enumerate().map(|(k, &id)| (self.truth.cat_name(id), of(k))).collect()
    }
}
