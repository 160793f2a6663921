//! `train`: trains a detector by a recipe, in as many stages as it has.

use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use upres::cpu::use_threads;
use upres::device::Device;
use upres::device::choice::{DeviceChoice, doctor as doctor_lines};
use upres::engine::feed::RunData;
use upres::format::counted;
use upres::output::{ended, print, tell};
use upres::plan::Planner;
use upres::plan::budget::{self, Budget, MemorySize};
use upres::plan::rates::Rates;
use upres::plan::report::PlanReport;
use upres::recipe::Recipe;
use upres::recipe::read::Override;
use upres::report::compare;
use upres::run::checkpoint::{Checkpoint, Meta};
use upres::run::dir::RunDir;
use upres::run::event::Observer;
use upres::train::finish::finish;
use upres::train::initial_weights::load_initial_weights;
use upres::train::options::TrainOptions;
use upres::train::outcome::Outcome;
use upres::train::progress::Progress;
use upres::train::recorder::Recorder;
use upres::train::session::train;
use upres::{Error, Result};

/// Trains an object detector from scratch: low resolution first, then high (arXiv 2106.03112).
///
/// Without a recipe the built-in data set of shapes is made in data/shapes and trained on. A run's folder holds recipe.toml
/// (every number), log.jsonl, TensorBoard events, checkpoints/, metrics.json and report.html.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  train                                             the built-in data set, some minutes on a laptop
  train recipes/bccd.toml --out runs/bccd           a recipe
  train recipes/bccd.toml --set stage.finetune.epochs=20 --set data.train.images=/data/bccd/images
  train --resume runs/bccd                          goes on where the run was stopped, bit-exactly on the CPU
  train recipes/faster_rcnn_r50_fpn.toml --plan     memory of every stage, to the byte, without training
  train my.toml --plan --json --device cuda         the same for a GPU, which need not be there, as JSON
  train my.toml --plan --device cuda --memory 11GiB what a GPU with so much free memory would train, and the largest batches

All keys of a recipe: docs/recipes.md. Exit codes: 0 done, 1 a failure, 2 wrong usage.
UPRES_PROFILE=1 prints the time of each op at the end; UPRES_SYNC=1 makes a GPU wait after each kernel, so that a
fault is blamed on it; UPRES_GRAPHS=0 launches a GPU's steps kernel by kernel instead of as one graph;
UPRES_CHECK_FINITE=1 names the first tensor of a step that is not finite (slow)."
)]
struct Args {
    /// The recipe, a TOML file; none: the built-in one.
    recipe: Option<PathBuf>,
    /// Folder of the run: must be empty or absent [default: runs/NAME-N].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:N, or sim (the simulated device, for tests).
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Overrides a key of the recipe, or, with no value (KEY=), removes it; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<Override>,
    /// Goes on with the run in this folder.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "out"])]
    resume: Option<PathBuf>,
    /// Prints what memory each stage needs and what for, to the byte, and ends. (The built-in data set is made for it, where it is
    /// absent.)
    ///
    /// Where an earlier run in runs/ (or beside --out, or the one of --resume) did the same work on such a device, also how long a
    /// stage takes.
    #[arg(long)]
    plan: bool,
    /// Bytes that a stage may take, such as 11GiB: computes activations again, or takes fewer images at a time, where it must
    /// [default: what a GPU has free, less a margin; on the CPU no limit].
    ///
    /// Where the recipe has optimizer.state = "auto", it may come down to optimizer state in bf16.
    ///
    /// What is changed is said, and is in the run's recipe.toml; steps keep their images and learning rates. With --resume the run's
    /// recipe must fit as it is. --plan without it shows the recipe as it is.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<MemorySize>,
    /// The plan as one JSON document.
    #[arg(long, requires = "plan")]
    json: bool,
    /// Ends, with a checkpoint, after so many optimizer steps of the run.
    #[arg(long, value_name = "STEPS")]
    stop_after: Option<u64>,
    /// Seed of the run, instead of the recipe's.
    #[arg(long)]
    seed: Option<u64>,
    /// Draws the curves of another run into the report; may be given again.
    #[arg(long, value_name = "DIR")]
    compare: Vec<PathBuf>,
    /// Says what this build and machine have, and ends.
    #[arg(long)]
    doctor: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.doctor { print("train", doctor()) } else { run(&args) };
    ended(done.map(|()| ExitCode::SUCCESS))
}

fn run(args: &Args) -> Result<()> {
    compare::check(&args.compare)?;
    let job = Job::read(args)?;
    use_threads(job.recipe.threads)?;
    if args.plan { plan(args, &job) } else { train_job(args, job) }
}

/// What is to be trained.
struct Job {
    recipe: Recipe,
    /// Names the recipe in errors.
    file: PathBuf,
    /// The folder of the run that goes on.
    resumed: Option<RunDir>,
}

impl Job {
    /// Reads the recipe: that of the resumed run, the given file, or the built-in one.
    fn read(args: &Args) -> Result<Job> {
        let mut overrides = args.overrides.clone();
        overrides.extend(args.seed.map(|s| Override { key: "seed".into(), value: s.to_string() }));
        let resumed = args.resume.as_deref().map(RunDir::resume).transpose()?;
        let (recipe, file) = match (&resumed, &args.recipe) {
            (Some(dir), _) => (dir.read_recipe(&overrides)?, dir.recipe()),
            (None, Some(path)) => (Recipe::read(path, &overrides)?, path.clone()),
            (None, None) => (Recipe::built_in(&overrides)?, PathBuf::from("recipes/shapes.toml")),
        };
        Ok(Job { recipe, file, resumed })
    }
}

/// `--plan`: prints what each stage takes, and trains nothing.
fn plan(args: &Args, job: &Job) -> Result<()> {
    let Job { recipe, file, resumed } = job;
    let mut rates = Rates::in_folder(&RunDir::parent(args.out.as_deref()));
    if let Some(run) = &args.resume {
        rates = rates.after(run);
    }
    let mut planner = Planner::new(recipe, file, &args.device.planner())?;
    let mut notes = match resumed {
        None => notes_on_weights(recipe, &planner),
        Some(_) => Vec::new(),
    };
    let mut budget = args.memory.map(|size| Budget::Given(size.0));
    // A resumed run goes on as it began, or not at all.
    if let (Some(dir), Some(size)) = (resumed, args.memory) {
        budget = None;
        let meta = Checkpoint::load(&dir.last())?.meta;
        budget::check(&mut planner, recipe, Budget::Given(size.0), meta.stage)?;
        notes.push(format!("the stages that are left fit {} bytes as they are", size.0));
    }
    let mut report = PlanReport::new(&mut planner, recipe, budget, &rates)?;
    report.notes.extend(notes);
    print("train", if args.json { report.to_json() } else { report.to_string() })
}

/// What is to be said of `init.weights`. The plan does not depend on the file, which may be absent on the machine that plans.
fn notes_on_weights(recipe: &Recipe, planner: &Planner) -> Vec<String> {
    let classes = planner.data.train.dataset().class_names();
    load_initial_weights(recipe, &classes, &planner.engine.store)
        .unwrap_or_else(|why| vec![format!("init.weights cannot be used here, a run would end with: {why}")])
}

/// Trains, and writes the files of the run that has ended.
fn train_job(args: &Args, job: Job) -> Result<()> {
    let device = args.device.open()?;
    let folder = Folder::open(args, &job)?;
    let Folder { dir, meta, .. } = &folder;
    let ready = fit(args, job.recipe, &job.file, &device, meta.as_ref()).inspect_err(|_| folder.undo())?;
    let Ready { recipe, data, notes } = ready;
    dir.write_recipe(&recipe)?;
    let mut recorder = Recorder::new(dir, &recipe, meta.as_ref(), Progress::new(&recipe));
    notes.iter().chain(&recipe.notes()).for_each(|note| recorder.note(note));
    note_changes(&recipe, &folder, &mut recorder);
    let options = TrainOptions {
        checkpoints: dir.checkpoints(),
        resume: meta.is_some().then(|| dir.last()),
        stop_after: args.stop_after,
        interrupt: catch_interrupts()?,
    };
    let outcome = train(&recipe, &job.file, &data, &device, &options, &mut recorder);
    drop(recorder);
    let outcome = outcome.inspect_err(|_| folder.undo())?;
    // Files first, and the numbers also where one of them fails.
    let finished = finish(dir, &recipe, &outcome, &args.compare);
    let text = summary(dir, &recipe, &outcome);
    drop(folder);
    finished.and(print("train", text))
}

/// The folder of a run, locked against other processes.
struct Folder {
    dir: RunDir,
    /// Counters of the run that goes on.
    meta: Option<Meta>,
    _lock: File,
}

impl Folder {
    /// Opens the folder of the resumed run, or makes a new one.
    fn open(args: &Args, job: &Job) -> Result<Folder> {
        let Some(dir) = job.resumed.clone() else {
            let dir = RunDir::create(args.out.as_deref(), &job.recipe)?;
            let lock = dir.lock()?;
            return Ok(Folder { dir, meta: None, _lock: lock });
        };
        let meta = Checkpoint::load(&dir.last())?.meta;
        let lock = dir.lock()?;
        dir.clear_half_written()?;
        Ok(Folder { dir, meta: Some(meta), _lock: lock })
    }

    /// Takes back what was written for a run that cannot begin. An error in here is not reported: the user must hear the first one.
    fn undo(&self) {
        let _ = if self.meta.is_some() { self.restore_recipe() } else { self.dir.discard_unbegun() };
    }

    /// Writes the recipe of the last checkpoint: an override that was refused must not stay.
    fn restore_recipe(&self) -> Result<()> {
        let checkpoint = Checkpoint::load(&self.dir.last())?;
        self.dir.write_recipe(&Recipe::parse(&checkpoint.meta.recipe, self.dir.recipe(), &[])?)
    }
}

/// Says which keys differ from the recipe that the run was trained with so far.
fn note_changes(recipe: &Recipe, folder: &Folder, recorder: &mut Recorder) {
    let before = folder.meta.as_ref().and_then(|meta| Recipe::parse(&meta.recipe, folder.dir.recipe(), &[]).ok());
    for change in before.map_or_else(Vec::new, |before| recipe.differences(&before)) {
        recorder.note(&format!("from here on {change}"));
    }
}

/// A flag that Ctrl-C sets; a second Ctrl-C ends the process at once.
fn catch_interrupts() -> Result<Arc<AtomicBool>> {
    let interrupt = Arc::new(AtomicBool::new(false));
    let flag = interrupt.clone();
    let handler = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        tell("interrupted: a checkpoint after this step, or now in an evaluation; again: at once");
    });
    handler.map_err(|e| Error::value("train", format!("cannot catch interrupts: {e}")))?;
    Ok(interrupt)
}

/// What a run came to, in words.
fn summary(dir: &RunDir, recipe: &Recipe, outcome: &Outcome) -> String {
    let mut text = String::new();
    match &outcome.results {
        Some(results) => {
            let _ = writeln!(text, "\n{} split, final weights\n{}\n", results.split, results.metrics);
            if let Some(masks) = &results.mask_metrics {
                let _ = writeln!(text, "masks\n{masks}\n");
            }
            for line in recipe.expect.iter().flat_map(|expect| expect.shortfalls(&results.numbers())) {
                let _ = writeln!(text, "below what the recipe expects: {line}");
            }
        }
        None => {
            let _ = writeln!(text, "{}: go on with `train --resume {}`", outcome.ended.name(), dir.path().display());
        }
    }
    let _ = write!(text, "{:.0} s, report: {}", outcome.time_s, dir.report().display());
    if upres::device::profile_enabled() {
        for (name, t) in upres::device::op_times().iter().take(60) {
            let _ = write!(text, "\n{:10.1} ms {:8} {name}", t.total.as_secs_f64() * 1e3, t.calls);
        }
    }
    text
}

/// What a run needs before it begins.
struct Ready {
    /// The recipe as it is trained.
    recipe: Recipe,
    data: RunData,
    /// What was changed of the recipe, and why.
    notes: Vec<String>,
}

/// Opens the data, and fits the recipe to the memory that `--memory` or the GPU gives. A run that goes on (`meta`) keeps its recipe, which is
/// only held against `--memory`.
fn fit(args: &Args, recipe: Recipe, file: &Path, device: &Device, meta: Option<&Meta>) -> Result<Ready> {
    let budget = match (args.memory, meta) {
        (Some(size), _) => Some(Budget::Given(size.0)),
        (None, None) => Budget::free(device)?,
        (None, Some(_)) => None,
    };
    let Some(budget) = budget else {
        let data = RunData::open_with(&recipe, file, recipe.model.mask_size().is_some())?;
        return Ok(Ready { recipe, data, notes: Vec::new() });
    };
    let mut planner = Planner::new(&recipe, file, device)?;
    if let Some(meta) = meta {
        budget::check(&mut planner, &recipe, budget, meta.stage)?;
        return Ok(Ready { recipe, data: planner.data, notes: Vec::new() });
    }
    let fitted = budget::fit(&mut planner, &recipe, Some(budget))?;
    let notes = fitted.notes().cloned().collect();
    Ok(Ready { recipe: fitted.recipe, data: planner.data, notes })
}

/// What this build and machine have.
fn doctor() -> String {
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    let threads = counted(rayon::current_num_threads(), "thread");
    let mut text = format!("upres {}\nbuild: {arch} {os}", env!("CARGO_PKG_VERSION"));
    let _ = write!(text, "\ncpu: {threads}, {}", upres::cpu::simd_level());
    doctor_lines().iter().for_each(|line| text += &format!("\ndevice {line}"));
    text
}
