//! What a finished run leaves beside its checkpoints: metrics.json, example pictures, report.html.

use std::path::PathBuf;

use super::trainer::Outcome;
use crate::data::draw_set::drawn;
use crate::detect::found::Detection;
use crate::error::Result;
use crate::eval::per_class_json;
use crate::recipe::Recipe;
use crate::report::pictures::{Example, save_examples};
use crate::report::write_report;
use crate::run::dir::RunDir;

/// Pictures shown in the report.
const EXAMPLES: usize = 8;
/// Detections shown need at least this score.
const SHOWN_SCORE: f32 = 0.5;

/// Writes the files of a run that has ended; an interrupted one gets a report of what there is.
pub fn finish(dir: &RunDir, recipe: &Recipe, outcome: &Outcome, compare: &[PathBuf]) -> Result<()> {
    if let Some((split, metrics)) = &outcome.metrics {
        let per_class = per_class_json(metrics, outcome.mask_metrics.as_ref());
        dir.write_metrics(&serde_json::json!({
            "recipe": recipe.name, "split": split, "seed": recipe.seed, "time_s": outcome.time_s,
            "metrics": outcome.numbers(), "per_class": per_class,
        }))?;
    }
    if let Some(store) = &outcome.store {
        let dataset = store.dataset();
        let mut examples = Vec::new();
        for found in outcome.detections.iter().take(EXAMPLES) {
            let Some(image) = store.get(found.index)? else { continue };
            let Some(picture) = image::RgbImage::from_raw(image.width, image.height, image.data.clone()) else {
                continue;
            };
            let info = &dataset.images[found.index];
            let shown = found.found.iter().filter(|d| d.score >= SHOWN_SCORE);
            examples.push(Example {
                name: info.file_name.clone(),
                image: picture,
                truth: dataset.ground_truth(found.index).map(|a| drawn(a, info)).collect(),
                found: shown.map(Detection::drawn).collect::<Result<_>>()?,
            });
        }
        save_examples(dir.path(), &examples, &dataset.class_names())?;
    }
    write_report(dir.path(), compare)
}
