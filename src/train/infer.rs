//! Detections of a whole set of images.

use std::rc::Rc;
use std::sync::Arc;

use super::data::host_batch;
use super::engine::{Detection, Engine};
use crate::data::{EvalLoader, ImageStore, Pipeline};
use crate::device::StepPlan;
use crate::error::Result;
use crate::eval::ResultBox;

/// Detections of one image.
pub struct ImageDetections {
    /// Index in the data set.
    pub index: usize,
    /// Best first, clipped to the image.
    pub found: Vec<Detection>,
}

/// Runs the detector over all images of a store. `order[b]` is the engine's number of the pipeline's bucket `b`. Images that
/// cannot be read (and are skipped) have no detections. `progress` hears how many of how many images are done.
pub fn detect_all(
    engine: &mut Engine,
    plans: &[Rc<StepPlan>],
    order: &[usize],
    store: &Arc<ImageStore>,
    pipeline: Pipeline,
    batch_size: usize,
    workers: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<ImageDetections>> {
    let total = store.dataset().images.len();
    let mut loader = EvalLoader::new(store.clone(), pipeline, batch_size, workers, 2)?;
    let (no_boxes, no_labels) = (vec![0.0; batch_size * 4], vec![-1; batch_size]);
    let mut all = Vec::with_capacity(total);
    while let Some(batch) = loader.next()? {
        let bucket = order[batch.bucket];
        engine.eval_inputs(bucket).load(&host_batch(&batch, &no_boxes, &no_labels));
        engine.eval_pass(Some(&plans[bucket]), bucket)?;
        for (slot, valid) in batch.valid.iter().enumerate() {
            if *valid {
                let [w, h] = batch.original_sizes[slot].map(|v| v as f32);
                let mut found = engine.detections(slot);
                for d in &mut found {
                    let [x0, y0, x1, y1] = d.bbox;
                    d.bbox = [x0.clamp(0.0, w), y0.clamp(0.0, h), x1.clamp(0.0, w), y1.clamp(0.0, h)];
                }
                all.push(ImageDetections { index: batch.indices[slot], found });
            }
        }
        progress(all.len(), total);
        loader.recycle(batch);
    }
    all.sort_by_key(|d| d.index);
    Ok(all)
}

/// Detections in COCO's results format.
pub fn to_results(all: &[ImageDetections], store: &ImageStore) -> Vec<ResultBox> {
    let dataset = store.dataset();
    let mut rows = Vec::new();
    for image in all {
        let image_id = dataset.images[image.index].id as u64;
        rows.extend(image.found.iter().map(|d| {
            let [x0, y0, x1, y1] = d.bbox.map(f64::from);
            ResultBox {
                image_id,
                category_id: dataset.categories[d.class].id as u64,
                bbox: [x0, y0, x1 - x0, y1 - y0],
                score: f64::from(d.score),
            }
        }));
    }
    rows
}
