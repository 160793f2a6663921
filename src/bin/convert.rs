//! `convert`: exchanges weights with torchvision and mmdetection.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use upres::cpu::use_threads;
use upres::format::counted;
use upres::output::{ended, print, tell};
use upres::recipe::Recipe;
use upres::recipe::read::Override;
use upres::run::convert::{Converted, from_foreign, is_left_out, to_foreign};
use upres::weights::Format;
use upres::{Error, Result};

/// Converts a checkpoint to a weights file of torchvision or mmdetection 3, or such a file to a checkpoint.
///
/// To start training from such a file, no conversion is needed: `train --set init.weights=FILE.safetensors`.
#[derive(Parser)]
#[command(version, max_term_width = 110, after_help = EXAMPLE)]
#[command(group(ArgGroup::new("way").required(true).args(["to", "from"])))]
struct Cli {
    /// With --to: a checkpoint written by `train`; its running average of the weights is used if it has one. With
    /// --from: a weights file of the other program, as safetensors
    input: PathBuf,
    /// File to write; it must not exist yet, its folder must exist
    output: PathBuf,
    /// Write a weights file for torchvision or mmdetection
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["recipe", "overrides", "classes"])]
    to: Option<Format>,
    /// Make a checkpoint from a weights file of torchvision or mmdetection
    #[arg(long, value_name = "PROGRAM", requires_all = ["recipe", "classes"])]
    from: Option<Format>,
    /// With --from: the recipe that describes the detector
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// With --from: override a key of the recipe; can be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<Override>,
    /// With --from: names of the classes in the order of the weights file, without background: separated by commas, or
    /// a file with one name per line. Classes named "-" or "N/A" are left out
    #[arg(long, value_name = "NAMES|FILE", allow_hyphen_values = true)]
    classes: Option<String>,
}

const EXAMPLE: &str = "Examples:
  convert runs/coco/checkpoints/last.safetensors --to mmdetection faster_rcnn.safetensors
  convert fasterrcnn_resnet50_fpn_coco.safetensors --from torchvision --recipe recipes/faster_rcnn_r50_fpn.toml \\
      --set model.box_head.kind=shared_2fc --set model.box_head.aligned=false --set model.box_head.sampling_ratio=2 \\
      --set model.rpn.anchor_rounding=true --set model.backbone.norm_eps=0 --classes coco.txt detector.safetensors

docs/interchange.md says what can be exchanged.
Exit code: 0 done; 1 failed, with one line on the error output; 2 wrong usage.";

fn main() -> ExitCode {
    ended(run(&Cli::parse()).map(|()| ExitCode::SUCCESS))
}

fn run(args: &Cli) -> Result<()> {
    use_threads(0)?;
    let done = convert(args)?;
    for note in &done.notes {
        tell(format_args!("note: {note}"));
    }
    let (tensors, weights) = (counted(done.tensors, "tensor"), counted(done.parameters, "weight"));
    print("convert", format_args!("{}: {tensors}, {weights}", args.output.display()))
}

fn convert(args: &Cli) -> Result<Converted> {
    match (args.to, args.from, &args.recipe, &args.classes) {
        (Some(format), ..) => to_foreign(&args.input, format, &args.output),
        (None, Some(format), Some(recipe), Some(classes)) => {
            let recipe = Recipe::read(recipe, &args.overrides)?;
            from_foreign(&args.input, format, &recipe, &names(classes)?, &args.output)
        }
        _ => unreachable!("convert: the rules of the arguments exclude this"),
    }
}

/// Extensions that mark an argument as a file name even if there is no such file.
const TEXT_FILES: [&str; 9] = ["txt", "json", "csv", "tsv", "names", "list", "yaml", "yml", "toml"];

/// Class names: the lines of the file if the argument names one, otherwise the parts between its commas.
fn names(classes: &str) -> Result<Vec<String>> {
    let path = Path::new(classes);
    if path.is_file() {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        return Ok(text.trim_end().lines().map(|line| line.trim().to_string()).collect());
    }
    let names: Vec<String> = classes.split(',').map(|name| name.trim().to_string()).collect();
    if let Some(name) = names.iter().find(|name| looks_like_file(name, names.len())) {
        let text = format!("{name}: no such file; a class of such a name goes into a file with one name a line");
        return Err(Error::value("--classes", text));
    }
    Ok(names)
}

/// Whether one of `count` names is more likely the name of a missing file than the name of a class.
fn looks_like_file(name: &str, count: usize) -> bool {
    let extension = Path::new(name).extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    let is_text = extension.is_some_and(|e| TEXT_FILES.contains(&e.as_str()));
    is_text || (count == 1 && name.contains(['/', '\\']) && !is_left_out(name))
}
