//! `evaluate`: measures a trained detector on a data set.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use serde_json::{Value, json};
use upres::cpu::use_threads;
use upres::data::{Dataset, ImageStore, Masks, ReadOptions};
use upres::detect::found::{ImageDetections, to_results};
use upres::detect::infer::Detector;
use upres::detect::tta::{Tta, View};
use upres::device::choice::DeviceChoice;
use upres::eval::{Evaluator, Look, MaskMetrics, Measured, Overlap, ResultBox, per_class_json, write_results};
use upres::format::counted;
use upres::output::{check_files, ended, image_bar, print, tell};
use upres::{Error, Result};

/// Measures a checkpoint on a data set in COCO's format: the twelve COCO metrics, and for each class AP, AP50 and the
/// AP of small, medium and large objects. A detector with masks is measured on boxes and on masks.
#[derive(Parser)]
#[command(version, max_term_width = 110, after_help = EXAMPLE)]
struct Cli {
    /// Checkpoint written by `train`; its running average of the weights is used if it has one
    checkpoint: PathBuf,
    /// Annotation file (COCO JSON); the names of its categories must be those of the checkpoint's classes
    #[arg(long)]
    annotations: PathBuf,
    /// Folder of the images
    #[arg(long)]
    images: PathBuf,
    /// Also write the detections as a COCO results file, with masks as RLE
    #[arg(long, value_name = "OUT.json")]
    detections: Option<PathBuf>,
    /// Also write all measured numbers as JSON
    #[arg(long, value_name = "OUT.json")]
    json: Option<PathBuf>,
    /// Also show the kinds of errors after TIDE, and how much AP50 would rise without each kind
    #[arg(long)]
    tide: bool,
    /// Also show which classes are confused, by boxes; with many classes only the pairs confused most often. With a
    /// file, also write the whole matrix there as JSON
    #[arg(long, value_name = "FILE.json", num_args = 0..=1)]
    confusion: Option<Option<PathBuf>>,
    /// Lowest score of the detections that count in --confusion
    #[arg(long, value_name = "SCORE", default_value_t = 0.3, value_parser = parse_score, requires = "confusion")]
    confusion_score: f64,
    /// Test-time augmentation: detect in several views of each picture and merge the detections. VIEWS is `flip` (plain
    /// and mirrored), `scales=0.8,1.0,1.2` (factors of the evaluation size) or `scales=0.8,1.0,1.2,flip` (each size
    /// plain and mirrored). The detections of all views are sorted by score and pass one more NMS per class, at the
    /// detector's threshold. A box keeps the mask of its own view: masks of views are not averaged. The time grows with
    /// the number of views
    #[arg(long, value_name = "VIEWS")]
    tta: Option<Tta>,
    /// Images per forward pass; the result does not depend on it [default: as in training]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Option<u16>,
    /// Device: auto (a GPU if there is one), cpu, cuda, cuda:N or sim (the simulated GPU)
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

const EXAMPLE: &str = "Example:
  evaluate runs/shapes/checkpoints/last.safetensors \\
      --annotations data/shapes/annotations/val.json --images data/shapes/images/val

  evaluate last.safetensors --annotations val.json --images val \\
      --tide --confusion --tta flip --json numbers.json

Existing output files are replaced, but never the checkpoint or the annotation file.
All files are written before anything is printed.
Exit code: 0 done; 1 failed, with one line on the error output; 2 wrong usage.";

impl Cli {
    /// The files to write, each with its option.
    fn outputs(&self) -> Vec<(&str, &Path)> {
        let confusion = self.confusion.as_ref().and_then(Option::as_ref);
        let all =
            [("--json", self.json.as_ref()), ("--detections", self.detections.as_ref()), ("--confusion", confusion)];
        all.into_iter().filter_map(|(option, path)| Some((option, path?.as_path()))).collect()
    }

    /// The views of each picture: the plain one without --tta.
    fn views(&self) -> &[View] {
        self.tta.as_ref().map_or(&[View::PLAIN], |tta| &tta.views)
    }
}

/// Cache for decoded pictures that are needed in several views, in bytes. Pictures beyond it are decoded once per view.
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
    let truth = GroundTruth::load(args, &detector)?;
    truth.left_out.iter().for_each(|note| tell(format_args!("note: {note}")));
    let store = image_store(args, &detector, &truth);
    let found = detect(args, &mut detector, &truth, &store)?;
    let rows = to_results(&found, &store);
    let numbers = Numbers::measure(args, &truth.evaluator, &rows)?;
    warn_of_skipped(&store);
    let context = context(args, &truth, &store, rows.len());
    // The numbers are printed even if a file cannot be written.
    let written = write_files(args, &rows, &numbers, context);
    let printed = print("evaluate", numbers.text());
    written.and(printed)
}

/// The data set that the detector is compared with.
struct GroundTruth {
    dataset: Arc<Dataset>,
    evaluator: Evaluator,
    /// The data set's class for each class of the detector.
    classes: Vec<usize>,
    /// Notes about what is not measured.
    left_out: Vec<String>,
}

impl GroundTruth {
    fn load(args: &Cli, detector: &Detector) -> Result<GroundTruth> {
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
        Ok(GroundTruth { dataset, evaluator, classes, left_out })
    }
}

fn image_store(args: &Cli, detector: &Detector, truth: &GroundTruth) -> Arc<ImageStore> {
    let cache = if args.views().len() > 1 { CACHE_BYTES } else { 0 };
    Arc::new(ImageStore::new(truth.dataset.clone(), detector.bad_images(), cache))
}

/// The detections in all images, with the classes of the data set.
fn detect(
    args: &Cli,
    detector: &mut Detector,
    truth: &GroundTruth,
    store: &Arc<ImageStore>,
) -> Result<Vec<ImageDetections>> {
    let batch = args.batch.map_or(detector.batch_size(), usize::from);
    let bar = image_bar(args.views().len() * truth.dataset.images.len());
    let found = detector.detect_views(store, batch, args.views(), |done, _| bar.set_position(done as u64));
    bar.finish_and_clear();
    let mut found = found?;
    found.iter_mut().flat_map(|i| &mut i.found).for_each(|d| d.class = truth.classes[d.class]);
    Ok(found)
}

fn warn_of_skipped(store: &ImageStore) {
    let skipped = store.skipped();
    if let Some((_, first)) = skipped.first() {
        let images = counted(skipped.len(), "image");
        tell(format_args!("warning: {images} skipped, which count as images where nothing was found: {first}"));
    }
}

/// What the JSON file says beside the numbers.
fn context(args: &Cli, truth: &GroundTruth, store: &ImageStore, detections: usize) -> Value {
    json!({
        "checkpoint": args.checkpoint.display().to_string(),
        "annotations": args.annotations.display().to_string(),
        "images": truth.dataset.images.len(),
        "skipped": store.skipped().len(),
        "left_out": truth.left_out,
        "detections": detections,
        "views": args.views().iter().map(|v| json!({ "scale": v.scale, "flip": v.flip })).collect::<Vec<Value>>(),
    })
}

/// Writes the files that the options name. If one fails the others are still written; the first error is returned.
fn write_files(args: &Cli, rows: &[ResultBox], numbers: &Numbers, context: Value) -> Result<()> {
    let json = args.json.as_ref().map_or(Ok(()), |path| {
        let mut all = numbers.json();
        context.as_object().into_iter().flatten().for_each(|(key, value)| all[key] = value.clone());
        write_json(path, &all)
    });
    let detections = args.detections.as_ref().map_or(Ok(()), |path| write_results(path, rows));
    let confusion = match (&args.confusion, &numbers.boxes.confusion) {
        (Some(Some(path)), Some(confusion)) => write_json(path, &confusion.json()),
        _ => Ok(()),
    };
    json.and(detections).and(confusion)
}

/// Writes in place and not atomically: the user can name a device or a pipe, which a rename would replace.
fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|e| Error::io(path, e))
}

/// The measured numbers.
struct Numbers {
    boxes: Measured,
    masks: Option<Measured>,
}

impl Numbers {
    fn measure(args: &Cli, evaluator: &Evaluator, rows: &[ResultBox]) -> Result<Numbers> {
        let confusion = args.confusion.as_ref().map(|_| args.confusion_score);
        let boxes = evaluator.measure(rows, Overlap::Boxes, Look { tide: args.tide, confusion })?;
        let look = Look { tide: args.tide, confusion: None };
        let masks = evaluator.has_masks().then(|| evaluator.measure(rows, Overlap::Masks, look)).transpose()?;
        Ok(Numbers { boxes, masks })
    }

    fn each(&self) -> impl Iterator<Item = &Measured> {
        [Some(&self.boxes), self.masks.as_ref()].into_iter().flatten()
    }

    /// All numbers as tables.
    fn text(&self) -> String {
        let mut text = String::new();
        for (i, m) in self.each().enumerate() {
            if i > 0 {
                text += "\n\nmasks:\n";
            } else if self.masks.is_some() {
                text += "boxes:\n";
            }
            text += &m.metrics.to_string();
            m.tide.iter().for_each(|t| text += &format!("\n\n{t}"));
            m.confusion.iter().for_each(|c| text += &format!("\n\n{c}"));
        }
        text
    }

    /// All numbers, in the form of a run's metrics.json with TIDE and confusion added.
    fn json(&self) -> Value {
        let metrics: serde_json::Map<String, Value> =
            self.each().flat_map(|m| m.metrics.by_key()).map(|(k, v)| (k, json!(v))).collect();
        let mut all = json!({
            "metrics": metrics,
            "per_class": per_class_json(&self.boxes.metrics, self.masks.as_ref().map(|m| &m.metrics)),
        });
        for m in self.each() {
            if let Some(tide) = &m.tide {
                all["tide"][m.metrics.overlap.name()] = tide.json();
            }
            if let Some(confusion) = &m.confusion {
                all["confusion"] = confusion.json();
            }
        }
        all
    }
}
