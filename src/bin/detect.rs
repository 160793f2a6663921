//! `detect`: finds objects in pictures and writes them as JSON and as annotated copies.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use image::RgbImage;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use upres::cpu::use_threads;
use upres::data::decode::image_size;
use upres::data::draw::{annotated, is_drawn, write_png};
use upres::data::{BadImages, Category, Dataset, ImageStore};
use upres::detect::found::{Detection, ImageDetections};
use upres::detect::infer::Detector;
use upres::detect::tta::{Tta, View};
use upres::device::choice::DeviceChoice;
use upres::eval::RleMask;
use upres::format::counted;
use upres::output::{ended, image_bar, make_folder, print, tell, write_public};
use upres::{Error, Result};

/// Finds objects in pictures: writes DIR/detections.json, and a copy DIR/NAME.png of each picture with boxes, class
/// names and scores drawn. Small pictures are enlarged, so that the names can be read. A detector with masks also draws
/// the masks and writes them as COCO's RLE (`segmentation`).
#[derive(Parser)]
#[command(version, max_term_width = 110, after_help = EXAMPLE)]
struct Cli {
    /// Checkpoint written by `train`; its running average of the weights is used if it has one
    checkpoint: PathBuf,
    /// JPEG and PNG files, and folders of them
    #[arg(required = true, value_name = "IMAGE|DIR")]
    inputs: Vec<PathBuf>,
    /// Folder for the results; created if it does not exist. Results of an earlier call are replaced, other files
    /// never: if another file has the name of a copy, the copy is called NAME-2.png; a detections.json of another
    /// program is an error
    #[arg(long, value_name = "DIR", default_value = "detections")]
    out: PathBuf,
    /// Leave out detections with a lower score; values below the recipe's score_threshold have no effect
    #[arg(long, default_value_t = 0.5, value_parser = parse_score)]
    score_threshold: f32,
    /// Test-time augmentation: detect in several views of each picture and merge the detections. VIEWS is `flip` (plain
    /// and mirrored), `scales=0.8,1.0,1.2` (factors of the evaluation size) or `scales=0.8,1.0,1.2,flip` (each size
    /// plain and mirrored). The detections of all views are sorted by score and pass one more NMS per class, at the
    /// detector's threshold. A box keeps the mask of its own view: masks of views are not averaged. The time grows with
    /// the number of views
    #[arg(long, value_name = "VIEWS")]
    tta: Option<Tta>,
    /// Device: auto (a GPU if there is one), cpu, cuda, cuda:N or sim (the simulated GPU)
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

const EXAMPLE: &str = "Example:
  detect runs/shapes/checkpoints/last.safetensors data/shapes/images/val \\
      --out found --score-threshold 0.3

A picture that cannot be read is named on the error output; the other pictures are still processed.
Exit code: 0 done; 1 failed, or a picture could not be read; 2 wrong usage.";

fn parse_score(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|v| (0.0..=1.0).contains(v)).ok_or_else(|| "want a number from 0 to 1".into())
}

/// A line of detections.json: COCO's results format with the file name in place of the image id.
#[derive(Serialize)]
struct Found<'a> {
    file_name: &'a str,
    category_id: i64,
    category: &'a str,
    bbox: [f32; 4],
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    segmentation: Option<&'a RleMask>,
}

/// Cache for decoded pictures between detection and drawing, in bytes. Pictures beyond it are decoded twice.
const CACHE_BYTES: u64 = 1 << 30;

fn main() -> ExitCode {
    // Failed pictures have been named already.
    let code = |all_done| if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    ended(run(&Cli::parse()).map(code))
}

/// Returns whether every picture was processed.
fn run(args: &Cli) -> Result<bool> {
    use_threads(0)?;
    let device = args.device.open()?;
    let mut detector = Detector::load(&args.checkpoint, &device)?;
    let (files, unreadable) = readable(&args.inputs);
    if files.is_empty() {
        return Ok(false); // each input has been named
    }
    make_folder("--out", &args.out)?;
    let json = args.out.join("detections.json");
    refuse_other_json(&json)?;
    let dataset = Arc::new(dataset(&files, &detector)?);
    let store = Arc::new(ImageStore::new(dataset.clone(), BadImages::Skip, CACHE_BYTES));
    let found = detect(args, &mut detector, &store)?;
    let skipped = tell_skipped(&store);
    let copies = copy_names(&args.out, &files);
    write_json(&json, &found, &dataset)?;
    let classes = dataset.class_names();
    found.par_iter().try_for_each(|image| draw(&copies[image.index], image, &store, &classes))?;
    print("detect", format_args!("{}: {}", summary(&found), args.out.display()))?;
    Ok(unreadable == 0 && skipped == 0)
}

/// A data set of pictures without ground truth, with the classes of the detector.
fn dataset(files: &[PathBuf], detector: &Detector) -> Result<Dataset> {
    let ids = detector.classes().iter().zip(&detector.meta.category_ids);
    Dataset::from_files(files, ids.map(|(name, &id)| Category { id, name: name.clone() }).collect())
}

/// The detections with at least the score threshold, in all pictures.
fn detect(args: &Cli, detector: &mut Detector, store: &Arc<ImageStore>) -> Result<Vec<ImageDetections>> {
    let views = args.tta.as_ref().map_or(&[View::PLAIN][..], |tta| &tta.views);
    let bar = image_bar(views.len() * store.dataset().images.len());
    let found = detector.detect_views(store, 1, views, |done, _| bar.set_position(done as u64));
    bar.finish_and_clear();
    let mut found = found?;
    for image in &mut found {
        image.found.retain(|d| d.score >= args.score_threshold);
    }
    Ok(found)
}

/// Names the pictures that could not be decoded on the error output and returns their number.
fn tell_skipped(store: &ImageStore) -> usize {
    let skipped = store.skipped();
    for (_, message) in &skipped {
        tell(format_args!("error: {message}"));
    }
    skipped.len()
}

fn summary(found: &[ImageDetections]) -> String {
    let objects: usize = found.iter().map(|i| i.found.len()).sum();
    format!("{} in {}", counted(objects, "object"), counted(found.len(), "picture"))
}

/// Returns the picture files that the arguments name and whose headers can be read, and the number of arguments and
/// files that cannot be read. Those are named on the error output.
fn readable(inputs: &[PathBuf]) -> (Vec<PathBuf>, usize) {
    let (mut files, mut failed) = (Vec::new(), 0);
    for input in inputs {
        let listed = if input.is_dir() { pictures_in(input) } else { Ok(vec![input.clone()]) };
        let checked = listed.map(|list| list.into_iter().map(|f| image_size(&f).map(|_| f)).collect());
        for result in checked.unwrap_or_else(|e| vec![Err(e)]) {
            match result {
                Ok(file) => files.push(file),
                Err(e) => {
                    tell(format_args!("error: {e}"));
                    failed += 1;
                }
            }
        }
    }
    (files, failed)
}

/// The JPEG and PNG files of a folder, sorted by name.
fn pictures_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let is_picture = |p: &PathBuf| {
        let extension = p.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        ["jpg", "jpeg", "png"].contains(&extension.as_str()) && p.is_file()
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(is_picture).collect();
    files.sort();
    if files.is_empty() {
        return Err(Error::data(folder, "no .jpg, .jpeg or .png file in this folder"));
    }
    Ok(files)
}

fn write_json(path: &Path, found: &[ImageDetections], dataset: &Dataset) -> Result<()> {
    let rows = found.iter().flat_map(|image| {
        image.found.iter().map(|d| {
            let [x0, y0, x1, y1] = d.bbox;
            Found {
                file_name: &dataset.images[image.index].file_name,
                category_id: dataset.categories[d.class].id,
                category: &dataset.categories[d.class].name,
                bbox: [x0, y0, x1 - x0, y1 - y0],
                score: d.score,
                segmentation: d.mask.as_ref(),
            }
        })
    });
    let lines: Result<Vec<String>, _> = rows.map(|row| serde_json::to_string(&row)).collect();
    let lines = lines.map_err(|e| Error::data(path, e.to_string()))?;
    write_public(path, format!("[\n{}\n]\n", lines.join(",\n")).as_bytes())
}

/// Refuses to replace a file that [`write_json`] did not write.
fn refuse_other_json(path: &Path) -> Result<()> {
    /// The fields by which a line of [`write_json`] is recognised.
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "file_name")]
        _file_name: String,
        #[serde(rename = "category")]
        _category: String,
    }
    let is_ours = |bytes: &[u8]| serde_json::from_slice::<Vec<Line>>(bytes).is_ok();
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(bytes) if bytes.is_empty() || is_ours(&bytes) => Ok(()),
        _ => {
            let text = format!("{} is not of an earlier `detect`: name another folder", path.display());
            Err(Error::value("--out", text))
        }
    }
}

/// The paths of the annotated copies: NAME.png; or NAME-2.png and so on, if NAME.png is the copy of another picture,
/// one of the input pictures, or a file that no earlier call drew.
fn copy_names(out: &Path, files: &[PathBuf]) -> Vec<PathBuf> {
    let inputs: HashSet<PathBuf> = files.iter().filter_map(|f| f.canonicalize().ok()).collect();
    let mut taken = HashSet::new();
    let mut name = |file: &PathBuf| {
        let stem = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let candidates = (1..).map(|n| if n == 1 { format!("{stem}.png") } else { format!("{stem}-{n}.png") });
        let is_input = |p: &PathBuf| p.canonicalize().is_ok_and(|p| inputs.contains(&p));
        let is_kept = |p: &PathBuf| p.symlink_metadata().is_ok() && (!is_drawn(p) || is_input(p));
        let mut free = candidates.map(|c| out.join(c)).filter(|p| !is_kept(p) && taken.insert(p.clone()));
        free.next().expect("there is always a larger number")
    };
    files.iter().map(&mut name).collect()
}

fn draw(copy: &Path, image: &ImageDetections, store: &ImageStore, classes: &[String]) -> Result<()> {
    let Some(picture) = store.get(image.index)? else { return Ok(()) };
    let (w, h) = (picture.width, picture.height);
    let pixels = RgbImage::from_raw(w, h, picture.data.clone());
    let pixels = pixels.ok_or_else(|| Error::data(copy, format!("cannot be drawn: {w} × {h} pixels")))?;
    let objects = image.found.iter().map(Detection::drawn).collect::<Result<Vec<_>>>()?;
    write_png(copy, &annotated(&pixels, &objects, classes))
}
