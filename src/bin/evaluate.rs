//! `evaluate`: COCO metrics of a trained detector on a data set.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use upres::cpu::use_threads;
use upres::data::{Dataset, ImageStore, Masks, ReadOptions};
use upres::detect::found::to_results;
use upres::detect::infer::Detector;
use upres::detect::tta::{Tta, View};
use upres::device::choice::DeviceChoice;
use upres::eval::{Evaluator, Look, MaskMetrics, Measured, Overlap, ResultBox, per_class_json, write_results};
use upres::format::counted;
use upres::output::{check_files, ended, print, tell};
use upres::{Error, Result};

/// Measures a checkpoint on a data set in COCO's format: the twelve COCO numbers, and of each class AP, AP50 and the AP of
/// small, medium and large objects. A detector with masks is measured on boxes and on masks.
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
    /// Also write the detections, as a COCO results file; masks as RLE
    #[arg(long, value_name = "OUT.json")]
    detections: Option<PathBuf>,
    /// Also write every number that is measured, as JSON
    #[arg(long, value_name = "OUT.json")]
    json: Option<PathBuf>,
    /// Also show what goes wrong: TIDE's kinds of errors, and how much AP50 would rise if each were mended
    #[arg(long)]
    tide: bool,
    /// Also show which classes are taken for which, by boxes; of many classes the pairs confused most. With a file, write
    /// the whole matrix there, as JSON
    #[arg(long, value_name = "FILE.json", num_args = 0..=1)]
    confusion: Option<Option<PathBuf>>,
    /// Detections count in --confusion from this score on
    #[arg(long, value_name = "SCORE", default_value_t = 0.3, value_parser = parse_score, requires = "confusion")]
    confusion_score: f64,
    /// Look at each picture several times and merge what is found: `flip` (also mirrored), `scales=0.8,1.0,1.2` (times the
    /// evaluation size), `scales=0.8,1.0,1.2,flip` (all sizes, plain and mirrored). Detections of all views are sorted by
    /// score and pass one more NMS, class by class, at the detector's threshold. A box keeps the mask of its own view:
    /// masks of views are not averaged. Takes as many times as long as there are views
    #[arg(long, value_name = "VIEWS")]
    tta: Option<Tta>,
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

  evaluate last.safetensors --annotations val.json --images val \\
      --tide --confusion --tta flip --json numbers.json

A file to write that exists is replaced, unless it is the checkpoint or the annotation file; all are written before anything is printed.
Exit code: 0 done; 1 failed, with one line on the error output; 2 wrong usage.";

impl Cli {
    /// The files to write, with their options.
    fn outputs(&self) -> Vec<(&str, &Path)> {
        let confusion = self.confusion.as_ref().and_then(Option::as_ref);
        let all =
            [("--json", self.json.as_ref()), ("--detections", self.detections.as_ref()), ("--confusion", confusion)];
        all.into_iter().filter_map(|(option, path)| Some((option, path?.as_path()))).collect()
    }
}

/// Pictures held in memory from one view to the next; more are decoded again.
const CACHE_BYTES: u64 = 1 << 30;

fn parse_score(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v| (0.0..=1.0).contains(v)).ok_or_else(|| "want a number from 0 to 1".into())
}

fn main() -> ExitCode {
    ended(run(&Cli::parse()).map(|()| ExitCode::SUCCESS))
}

fn run(args: &Cli) -> Result<()> {
    let inputs = [("the checkpoint", args.checkpoint.as_path()), ("the annotation file", &args.annotations)];
    check_files(&args.outputs(), &inputs)?;
    use_threads(0)?;
    let device = args.device.open()?;
    let mut detector = Detector::load(&args.checkpoint, &device)?;
    let masks = if detector.has_masks() { Masks::Read } else { Masks::Skip };
    let options = ReadOptions { masks, ..ReadOptions::default() };
    let dataset = Arc::new(Dataset::load_with(&args.annotations, &args.images, options)?);
    let classes = detector.match_classes(&dataset)?;
    let mut left_out: Vec<String> =
        dataset.evaluation_note().into_iter().map(|note| format!("ground truth: {note}")).collect();
    let wanted = if detector.has_masks() { MaskMetrics::IfUsable } else { MaskMetrics::Off };
    let (evaluator, without_masks) = Evaluator::open(&dataset, wanted)?;
    left_out.extend(without_masks);
    left_out.extend(if evaluator.has_masks() { dataset.mask_note() } else { None });
    left_out.iter().for_each(|note| tell(format_args!("note: {note}")));
    let views = args.tta.as_ref().map_or(&[View::PLAIN][..], |tta| &tta.views);
    let cache = if views.len() > 1 { CACHE_BYTES } else { 0 };
    let store = Arc::new(ImageStore::new(dataset, detector.bad_images(), cache));
    let batch = args.batch.map_or(detector.batch_size(), usize::from);

    let bar = ProgressBar::new((views.len() * store.dataset().images.len()) as u64); // draws nothing where there is no terminal
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} images  {per_sec}  {eta} left");
    bar.set_style(style.expect("evaluate: the template is right"));
    let found = detector.detect_views(&store, batch, views, |done, _| bar.set_position(done as u64));
    bar.finish_and_clear();
    let mut found = found?;
    found.iter_mut().flat_map(|i| &mut i.found).for_each(|d| d.class = classes[d.class]);

    let rows = to_results(&found, &store);
    let confusion = args.confusion.as_ref().map(|_| args.confusion_score);
    let boxes = evaluator.measure(&rows, Overlap::Boxes, Look { tide: args.tide, confusion })?;
    let look = Look { tide: args.tide, confusion: None };
    let masks = evaluator.has_masks().then(|| evaluator.measure(&rows, Overlap::Masks, look)).transpose()?;
    let skipped = store.skipped();
    if let Some((_, first)) = skipped.first() {
        let images = counted(skipped.len(), "image");
        tell(format_args!("warning: {images} skipped, which count as images where nothing was found: {first}"));
    }
    let more = json!({
        "checkpoint": args.checkpoint.display().to_string(),
        "annotations": args.annotations.display().to_string(),
        "images": store.dataset().images.len(),
        "skipped": skipped.len(),
        "left_out": left_out,
        "detections": rows.len(),
        "views": views.iter().map(|v| json!({ "scale": v.scale, "flip": v.flip })).collect::<Vec<Value>>(),
    });
    // Whatever cannot be written, files or standard output, the rest is.
    let written = write_files(args, &rows, &boxes, masks.as_ref(), more);
    let printed = print("evaluate", shown(&boxes, masks.as_ref()));
    written.and(printed)
}

/// All files that were asked for, also where one of them fails.
fn write_files(args: &Cli, rows: &[ResultBox], boxes: &Measured, masks: Option<&Measured>, more: Value) -> Result<()> {
    let json = args.json.as_ref().map_or(Ok(()), |path| {
        let mut all = numbers(boxes, masks);
        more.as_object().into_iter().flatten().for_each(|(key, value)| all[key] = value.clone());
        write_json(path, &all)
    });
    let detections = args.detections.as_ref().map_or(Ok(()), |path| write_results(path, rows));
    let confusion = match (&args.confusion, &boxes.confusion) {
        (Some(Some(path)), Some(confusion)) => write_json(path, &confusion.json()),
        _ => Ok(()),
    };
    json.and(detections).and(confusion)
}

/// Everything that was measured, in words.
fn shown(boxes: &Measured, masks: Option<&Measured>) -> String {
    let mut text = String::new();
    for (i, m) in [Some(boxes), masks].into_iter().flatten().enumerate() {
        if i > 0 {
            text += "\n\nmasks:\n";
        } else if masks.is_some() {
            text += "boxes:\n";
        }
        text += &m.metrics.to_string();
        m.tide.iter().for_each(|t| text += &format!("\n\n{t}"));
        m.confusion.iter().for_each(|c| text += &format!("\n\n{c}"));
    }
    text
}

/// Every number, in the form of a run's metrics.json and more.
fn numbers(boxes: &Measured, masks: Option<&Measured>) -> Value {
    let each = || [Some(boxes), masks].into_iter().flatten();
    let metrics: serde_json::Map<String, Value> =
        each().flat_map(|m| m.metrics.by_key()).map(|(k, v)| (k, json!(v))).collect();
    let mut all = json!({
        "metrics": metrics,
        "per_class": per_class_json(&boxes.metrics, masks.map(|m| &m.metrics)),
    });
    for m in each() {
        if let Some(tide) = &m.tide {
            all["tide"][m.metrics.overlap.name()] = tide.json();
        }
        if let Some(confusion) = &m.confusion {
            all["confusion"] = confusion.json();
        }
    }
    all
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|e| Error::io(path, e))
}
