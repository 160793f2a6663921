//! What a finished run leaves beside its checkpoints: metrics.json, example pictures, report.html.

use std::path::PathBuf;

use super::outcome::{Outcome, Results};
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
    if let Some(results) = &outcome.results {
        dir.write_metrics(&serde_json::json!({
            "recipe": recipe.name, "split": results.split, "seed": recipe.seed, "time_s": outcome.time_s,
            "metrics": results.numbers(), "per_class": per_class_json(&results.metrics, results.mask_metrics.as_ref()),
        }))?;
        write_examples(dir, results)?;
    }
    write_report(dir.path(), compare)
}

/// Draws what was found in the first images of the split beside its ground truth.
fn write_examples(dir: &RunDir, results: &Results) -> Result<()> {
    let dataset = results.store.dataset();
    let mut examples = Vec::new();
    for found in results.detections.iter().take(EXAMPLES) {
        let Some(image) = results.store.get(found.index)? else { continue };
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
    save_examples(dir.path(), &examples, &dataset.class_names()).map(drop)
}
