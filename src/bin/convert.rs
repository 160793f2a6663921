//! `convert`: weights from and for torchvision and mmdetection.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use upres::cpu::use_threads;
use upres::format::counted;
use upres::output::{ended, print, tell};
use upres::recipe::Recipe;
use upres::recipe::read::Override;
use upres::run::convert::{from_foreign, is_left_out, to_foreign};
use upres::weights::Format;
use upres::{Error, Result};

/// Writes a checkpoint's weights as torchvision or mmdetection 3 name and order them, or makes a checkpoint of theirs.
///
/// To train from such a file no checkpoint is needed: `train --set init.weights=FILE.safetensors`.
#[derive(Parser)]
#[command(version, max_term_width = 110, after_help = EXAMPLE)]
#[command(group(ArgGroup::new("way").required(true).args(["to", "from"])))]
struct Cli {
    /// With --to a checkpoint that `train` wrote (its running average is taken where it has one), with --from weights of the other
    /// program, as safetensors
    input: PathBuf,
    /// File to write: one that is not there yet, in a folder that is
    output: PathBuf,
    /// Write weights for torchvision or mmdetection
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["recipe", "overrides", "classes"])]
    to: Option<Format>,
    /// Make a checkpoint of weights of torchvision or mmdetection
    #[arg(long, value_name = "PROGRAM", requires_all = ["recipe", "classes"])]
    from: Option<Format>,
    /// With --from: the recipe that describes the detector
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// With --from: overrides a key of the recipe; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<Override>,
    /// With --from: names of the file's classes in its order, without background: separated by commas, or a file with one a line.
    /// Those named "-" or "N/A" are left out
    #[arg(long, value_name = "NAMES|FILE", allow_hyphen_values = true)]
    classes: Option<String>,
}

const EXAMPLE: &str = "Examples:
  convert runs/coco/checkpoints/last.safetensors --to mmdetection faster_rcnn.safetensors
  convert fasterrcnn_resnet50_fpn_coco.safetensors --from torchvision --recipe recipes/faster_rcnn_r50_fpn.toml \\
      --set model.box_head.kind=shared_2fc --set model.box_head.aligned=false --set model.box_head.sampling_ratio=2 \\
      --set model.rpn.anchor_rounding=true --set model.backbone.norm_eps=0 --classes coco.txt detector.safetensors

docs/interchange.md says what can be exchanged. Exit code: 0 done; 1 failed, with one line on the error output; 2 wrong usage.";

fn main() -> ExitCode {
    ended(run(&Cli::parse()).map(|()| ExitCode::SUCCESS))
}

fn run(args: &Cli) -> Result<()> {
    use_threads(0)?;
    let done = match (args.to, args.from, &args.recipe, &args.classes) {
        (Some(format), ..) => to_foreign(&args.input, format, &args.output)?,
        (None, Some(format), Some(recipe), Some(classes)) => {
            let recipe = Recipe::read(recipe, &args.overrides)?;
            from_foreign(&args.input, format, &recipe, &names(classes)?, &args.output)?
        }
        _ => unreachable!("convert: the arguments' rules"),
    };
    for note in &done.notes {
        tell(format_args!("note: {note}"));
    }
    let (tensors, weights) = (counted(done.tensors, "tensor"), counted(done.parameters, "weight"));
    print("convert", format_args!("{}: {tensors}, {weights}", args.output.display()))
}

/// What ends like this is meant as a file, also where there is none.
const TEXT_FILES: [&str; 9] = ["txt", "json", "csv", "tsv", "names", "list", "yaml", "yml", "toml"];

/// Class names: the lines of a file of that name, or else what the commas separate.
fn names(classes: &str) -> Result<Vec<String>> {
    let trimmed = |s: &str| s.trim().to_string();
    let path = Path::new(classes);
    if !path.is_file() {
        let names: Vec<String> = classes.split(',').map(trimmed).collect();
        let is_path = |name: &&String| {
            let extension = Path::new(name.as_str()).extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
            let is_text = extension.is_some_and(|e| TEXT_FILES.contains(&e.as_str()));
            is_text || (names.len() == 1 && name.contains(['/', '\\']) && !is_left_out(name))
        };
        if let Some(name) = names.iter().find(is_path) {
            let text = format!("{name}: no such file; a class of such a name goes into a file with one name a line");
            return Err(Error::value("--classes", text));
        }
        return Ok(names);
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    Ok(text.trim_end().lines().map(trimmed).collect())
}
