//! Looks at data sets: `dataset check`, `dataset stats`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use upres::data::check::check;
use upres::data::stats::Stats;
use upres::data::{Dataset, ReadOptions};

/// Looks at and checks data sets in COCO's format.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find everything that is wrong with a data set: the annotation file, and every image file
    Check(CheckArgs),
    /// Count images, sizes, classes, boxes; propose shape buckets
    Stats(StatsArgs),
}

#[derive(Args)]
struct CheckArgs {
    /// Annotation file (COCO JSON)
    annotations: PathBuf,
    /// Folder of the images
    #[arg(long)]
    images: PathBuf,
    /// Examples shown of each kind of finding
    #[arg(long, default_value_t = 5)]
    max: usize,
}

#[derive(Args)]
struct StatsArgs {
    /// Annotation file (COCO JSON)
    annotations: PathBuf,
    /// Folder of the images; only read where the annotation file does not say how large they are
    #[arg(long)]
    images: Option<PathBuf>,
    /// Limit of the longer side for the proposed buckets
    #[arg(long, default_value_t = 1333, value_parser = clap::value_parser!(u32).range(1..=16384))]
    long: u32,
    /// Limit of the shorter side for the proposed buckets
    #[arg(long, default_value_t = 800, value_parser = clap::value_parser!(u32).range(1..=16384))]
    short: u32,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check(args) => run_check(&args),
        Command::Stats(args) => run_stats(&args),
    };
    done.unwrap_or_else(|e| {
        eprintln!("error: {e}");
        ExitCode::FAILURE
    })
}

fn run_check(args: &CheckArgs) -> upres::Result<ExitCode> {
    let report = check(&args.annotations, &args.images, args.max)?;
    println!("{report}");
    Ok(if report.is_fatal() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn run_stats(args: &StatsArgs) -> upres::Result<ExitCode> {
    let images = args.images.clone().unwrap_or_default();
    let dataset = Dataset::read(&args.annotations, images, ReadOptions::default())?;
    println!("{}", Stats::new(&dataset, args.long, args.short));
    Ok(ExitCode::SUCCESS)
}
