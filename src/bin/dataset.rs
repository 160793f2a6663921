//! `dataset`: inspects data sets and creates the built-in one. Commands: `check`, `stats`, `draw`, `shapes`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use upres::data::check::{check, expect_folder};
use upres::data::draw_set::{draw_dataset, pictures, read_picture};
use upres::data::shapes::{Class, ShapesOptions, SplitSummary, generate};
use upres::data::stats::Stats;
use upres::data::{Dataset, Masks, ReadOptions};
use upres::format::counted;
use upres::output::{ended, make_folder, print, refuse_existing};

/// Inspects and checks data sets in COCO's format, and creates the built-in one.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check a data set for errors: the annotation file and every image file
    Check(CheckArgs),
    /// Count images, sizes, classes and boxes, and propose shape buckets
    Stats(StatsArgs),
    /// Write copies of pictures with boxes, masks and class names drawn, and a sheet with the first of them
    Draw(DrawArgs),
    /// Create the built-in data set: textured, overlapping shapes with boxes and polygon masks
    Shapes(ShapesArgs),
}

#[derive(Args)]
struct CheckArgs {
    /// Annotation file (COCO JSON)
    annotations: PathBuf,
    /// Folder of the images
    #[arg(long)]
    images: PathBuf,
    /// Maximum number of examples shown for each kind of finding
    #[arg(long, default_value_t = 5)]
    max: usize,
}

#[derive(Args)]
struct StatsArgs {
    /// Annotation file (COCO JSON)
    annotations: PathBuf,
    /// Folder of the images; only read if the annotation file lacks image sizes
    #[arg(long)]
    images: Option<PathBuf>,
    /// Maximum longer side of the proposed buckets, in pixels
    #[arg(long, default_value_t = 1333, value_parser = clap::value_parser!(u32).range(1..=16384))]
    long: u32,
    /// Maximum shorter side of the proposed buckets, in pixels
    #[arg(long, default_value_t = 800, value_parser = clap::value_parser!(u32).range(1..=16384))]
    short: u32,
}

#[derive(Args)]
struct DrawArgs {
    /// Annotation file (COCO JSON)
    annotations: PathBuf,
    /// Folder of the images
    #[arg(long)]
    images: PathBuf,
    /// Folder for the drawn copies and sheet.png. Copies of an earlier call are replaced; any other file with the name
    /// of a copy is an error
    #[arg(long)]
    out: PathBuf,
    /// Number of pictures to draw, evenly spread over the data set
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

#[derive(Args)]
struct ShapesArgs {
    /// Folder in which `images/` and `annotations/` are created; these must not exist yet
    #[arg(long)]
    out: PathBuf,
    /// Random seed; the same seed gives the same bytes
    #[arg(long, default_value_t = ShapesOptions::default().seed)]
    seed: u64,
    /// Number of training pictures
    #[arg(long, default_value_t = ShapesOptions::default().train)]
    train: usize,
    /// Number of validation pictures
    #[arg(long, default_value_t = ShapesOptions::default().val)]
    val: usize,
    /// Number of test pictures
    #[arg(long, default_value_t = ShapesOptions::default().test)]
    test: usize,
    /// Maximum width and height of a picture, in pixels
    #[arg(long, default_value = "240x180", value_parser = parse_size)]
    size: (u32, u32),
}

/// Parses width and height, as in `240x180`.
fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let (w, h) = text.split_once('x').ok_or("want WIDTHxHEIGHT, as 240x180")?;
    let side = |s: &str| s.parse::<u32>().map_err(|_| format!("{s:?} is not a number of pixels: want 240x180"));
    Ok((side(w)?, side(h)?))
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check(args) => run_check(&args),
        Command::Stats(args) => run_stats(&args),
        Command::Draw(args) => run_draw(&args),
        Command::Shapes(args) => run_shapes(&args),
    };
    ended(done)
}

fn run_check(args: &CheckArgs) -> upres::Result<ExitCode> {
    let report = check(&args.annotations, &args.images, args.max)?;
    print("dataset check", &report)?;
    Ok(if report.is_fatal() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn run_stats(args: &StatsArgs) -> upres::Result<ExitCode> {
    let images = args.images.clone().unwrap_or_default();
    let dataset = Dataset::read(&args.annotations, images, ReadOptions::default())?;
    print("dataset stats", Stats::new(&dataset, args.long, args.short))?;
    Ok(ExitCode::SUCCESS)
}

fn run_draw(args: &DrawArgs) -> upres::Result<ExitCode> {
    expect_folder(&args.images)?;
    let options = ReadOptions { masks: Masks::Read, ..ReadOptions::default() };
    let dataset = Dataset::load_with(&args.annotations, &args.images, options)?;
    let pictures = pictures(&dataset, args.count as usize);
    let files = draw_dataset(&pictures, &dataset.class_names(), &args.out, read_picture)?;
    if let Some((sheet, copies)) = files.split_last() {
        let (drawn, out) = (counted(copies.len(), "picture"), args.out.display());
        print("dataset draw", format_args!("{drawn} in {out}, the first of them in {}", sheet.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_shapes(args: &ShapesArgs) -> upres::Result<ExitCode> {
    let (seed, train, val, test, size) = (args.seed, args.train, args.val, args.test, args.size);
    let options = ShapesOptions { seed, train, val, test, size, ..ShapesOptions::default() };
    options.check()?;
    for part in ["annotations", "images"] {
        refuse_existing("--out", &args.out.join(part))?;
    }
    make_folder("--out", &args.out)?;
    let splits: Vec<String> = generate(&args.out, &options)?.splits.iter().map(split_text).collect();
    print("dataset shapes", splits.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The files of a split, and its number of objects of each class.
fn split_text(split: &SplitSummary) -> String {
    let counts = Class::ALL.iter().zip(split.instances).map(|(c, n)| format!("{n} {}", c.name()));
    let (images, counts) = (counted(split.images, "image"), counts.collect::<Vec<_>>().join(", "));
    format!("{}: {images} in {}\n  {counts}", split.annotations.display(), split.images_dir.display())
}
