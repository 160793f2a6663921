//! Planned GPU memory of the paper's five recipes: both stages, f32 and 16 bits, with and without recomputed norms and
//! blocks, and the largest batch that fits 11 GiB. Nothing is computed: a plan is traced for a GPU's kernels and the
//! workspaces of its libraries.
//!
//! ```sh
//! cargo bench --bench plans                  # a table
//! cargo bench --bench plans -- --json FILE   # and raw lines
//! ```

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use upres::data::Shape;
use upres::device::{Device, Target};
use upres::engine::{Engine, StageSetup};
use upres::models::PixelStats;
use upres::plan::StagePlans;
use upres::recipe::{Recipe, Recompute, Resize, StageConfig};
use upres::tensor::DType;

const RECIPES: [&str; 5] =
    ["faster_rcnn_r50_fpn", "cascade_rcnn_r50_fpn", "mask_rcnn_r50_fpn", "retinanet_r50_fpn", "mask_rcnn_swin_t_fpn"];
/// COCO's: classes, and the most objects of an image, rounded up as the trainer does.
const CLASSES: usize = 80;
const MAX_GT: usize = 96;
/// Runs of the masks of an image of COCO with many objects.
const MASK_RUNS: usize = 32 * 1024;
const BUDGET: usize = 11 << 30;
const PIXELS: PixelStats = PixelStats { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };

/// The largest shape of a stage: 448×448, or 800×1344 (1333 padded to a multiple of 32).
fn bucket(resize: &Resize) -> Shape {
    match *resize {
        Resize::FitCrop { size, .. } => Shape { height: size as usize as u32, width: size as usize as u32 },
        Resize::KeepRatio { long, short, pad_to, .. } => {
            let padded = |side: u32| side.next_multiple_of(pad_to) as usize;
            Shape { height: padded(short) as u32, width: padded(long) as u32 }
        }
    }
}

/// Plans for `batch` images a pass.
fn plan(
    engine: &mut Engine,
    recipe: &Recipe,
    stage: &StageConfig,
    batch: usize,
    dtype: DType,
    how: Recompute,
) -> StagePlans {
    let stage = StageConfig { micro_batch: batch, images_per_step: batch, recompute: how, ..stage.clone() };
    let shape = bucket(&stage.resize);
    let mask_runs = if recipe.model.mask_size().is_some() { MASK_RUNS } else { 0 };
    // Evaluation is of one image: what counts here is training.
    let setup =
        StageSetup { mask_runs, dtype, eval_batch: 1, ..StageSetup::new(&stage, vec![shape], vec![shape], MAX_GT) };
    StagePlans::trace(engine, &setup).expect("a plan")
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let json = args.iter().position(|a| a == "--json").and_then(|i| args.get(i + 1));
    let mut file = json.map(|path| std::fs::File::create(path).expect("--json"));
    println!(
        "| recipe, stage | images a pass | stored in | computed again | between steps, MiB | step, MiB | all, GiB | packed above the bound | largest batch in 11 GiB |"
    );
    println!("|---|---:|---|---|---:|---:|---:|---:|---:|");
    for name in RECIPES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("recipes/{name}.toml"));
        let recipe = Recipe::read(&path, &[]).expect("a recipe");
        let mut engine =
            Engine::new(&Device::plan_for(Target::Cuda), &recipe.model, CLASSES, PIXELS, 0).expect("a plan");
        for stage in &recipe.stages {
            for (dtype, how) in [
                (DType::F32, Recompute::None),
                (DType::F32, Recompute::Blocks),
                (DType::F16, Recompute::None),
                (DType::F16, Recompute::Norms),
                (DType::F16, Recompute::Blocks),
            ] {
                let start = Instant::now();
                let plans = plan(&mut engine, &recipe, stage, stage.micro_batch, dtype, how);
                let seconds = start.elapsed().as_secs_f64();
                let (mut fits, mut too_many) = (0, 1024);
                while too_many - fits > 1 {
                    let batch = (fits + too_many) / 2;
                    let plans = plan(&mut engine, &recipe, stage, batch, dtype, how);
                    let total = plans.persistent_bytes + plans.arena_bytes();
                    *(if total <= BUDGET { &mut fits } else { &mut too_many }) = batch;
                }
                let step = &plans.train[0];
                let (arena, persistent) = (step.peak_bytes(), plans.persistent_bytes);
                let above = step.peak_bytes() as f64 / step.lower_bound_bytes() as f64 - 1.0;
                let again = match how {
                    Recompute::None => "nothing",
                    Recompute::Norms => "norms",
                    Recompute::Blocks => "blocks",
                };
                println!(
                    "| {name}, {} | {} | {} | {again} | {} | {} | {:.2} | {:.1} % | {fits} |",
                    stage.name,
                    stage.micro_batch,
                    dtype.name(),
                    persistent >> 20,
                    arena >> 20,
                    (persistent + arena) as f64 / f64::from(1 << 30),
                    100.0 * above,
                );
                if let Some(file) = &mut file {
                    let shape = bucket(&stage.resize);
                    let line = serde_json::json!({
                        "recipe": name, "stage": stage.name, "images": stage.micro_batch, "height": shape.height, "width": shape.width,
                        "dtype": dtype.name(), "recompute": again, "persistent_bytes": persistent,
                        "step_bytes": arena, "lower_bound_bytes": step.lower_bound_bytes(), "plan_s": seconds,
                        "largest_batch_11gib": fits,
                    });
                    writeln!(file, "{line}").expect("--json");
                }
            }
        }
    }
}
