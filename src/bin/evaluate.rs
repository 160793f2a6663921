//! `evaluate`: COCO metrics of a trained detector on a data set.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use upres::data::{Dataset, ImageStore};
use upres::device::choice::DeviceChoice;
use upres::device::use_threads;
use upres::eval::{Evaluator, write_results};
use upres::train::infer::{Detector, to_results};

/// Measures a checkpoint on a data set in COCO's format: the twelve COCO numbers, AP and AP50 of each class.
#[derive(Parser)]
#[command(version, max_term_width = 110, after_help = EXAMPLE)]
struct Cli {
    /// Checkpoint that `train` wrote; its running average of the weights is taken where it has one
    checkpoint: PathBuf,
    /// Annotation file (COCO JSON); its categories must have the names of the checkpoint's classes
    #[arg(long)]
    annotations: PathBuf,
    /// Folder of the images
    #[arg(long)]
    images: PathBuf,
    /// Also write the detections, as a COCO results file
    #[arg(long, value_name = "OUT.json")]
    detections: Option<PathBuf>,
    /// Images a pass; the result does not depend on it [default: as in training]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Option<u16>,
    /// Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:N or sim
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

const EXAMPLE: &str = "Example:
  evaluate runs/shapes/checkpoints/last.safetensors \\
      --annotations data/shapes/annotations/val.json --images data/shapes/images/val

Exit code: 0 done; 1 failed, with one line on the error output; 2 wrong usage.";

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Cli) -> upres::Result<()> {
    use_threads(0)?;
    let device = args.device.open()?;
    let mut detector = Detector::load(&args.checkpoint, &device)?;
    let dataset = Arc::new(Dataset::load(&args.annotations, &args.images)?);
    let classes = detector.match_classes(&dataset)?;
    let evaluator = Evaluator::new(&dataset);
    let store = Arc::new(ImageStore::new(dataset, detector.bad_images(), 0));
    let batch = args.batch.map_or(detector.batch_size(), usize::from);

    let bar = ProgressBar::new(store.dataset().images.len() as u64); // draws nothing where there is no terminal
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} images  {per_sec}  {eta} left");
    bar.set_style(style.expect("evaluate: the template is right"));
    let found = detector.detect(&store, batch, |done, _| bar.set_position(done as u64));
    bar.finish_and_clear();
    let mut found = found?;
    found.iter_mut().flat_map(|i| &mut i.found).for_each(|d| d.class = classes[d.class]);

    let rows = to_results(&found, &store);
    println!("{}", evaluator.evaluate(&rows)?);
    if let Some(path) = &args.detections {
        write_results(path, &rows)?;
    }
    let skipped = store.skipped();
    if let Some((_, first)) = skipped.first() {
        eprintln!(
            "warning: {} images were skipped, and count as images where nothing was found: {first}",
            skipped.len()
        );
    }
    Ok(())
}
