//! Training speeds from the logs of earlier runs. A plan expects the same speed of a stage that does the same work.
//!
//! Main type: [`Rates`].

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use crate::device::Target;
use crate::recipe::{Recipe, StageConfig};
use crate::run::dir::RunDir;
use crate::run::event::Event;

/// Log lines that are skipped where a stage begins or is resumed, each about a second: caches are cold, and a GPU still
/// chooses its algorithms.
const COLD_LINES: usize = 5;
/// Log lines that are needed after the skipped ones for a rate.
const FEWEST_LINES: usize = 10;
/// Plausible rates in images per second. A log with others is damaged.
const BELIEVABLE: RangeInclusive<f64> = 1e-6..=1e9;

/// A measured training speed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Training images per second, without evaluations.
    pub images_per_s: f64,
    /// Folder of the run.
    pub run: PathBuf,
    /// The run's device in words.
    pub device: String,
    /// The run's threads, which matter on the CPU.
    pub threads: usize,
}

/// Earlier runs, in the order in which they are asked for a rate.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    runs: Vec<Run>,
}

#[derive(Clone, Debug)]
struct Run {
    path: PathBuf,
    recipe: Recipe,
    measured: Measured,
}

/// The rates in a log that belong to the recipe of its folder. A resumed run may have changed its recipe, so a log may
/// hold rates of several recipes.
#[derive(Clone, Debug, Default)]
struct Measured {
    device: String,
    threads: usize,
    lines: Vec<Line>,
}

/// A log line of training.
#[derive(Clone, Debug)]
struct Line {
    stage: String,
    images_per_s: f64,
}

impl Rates {
    /// The runs in a folder, newest first. Entries that are not runs or cannot be read are skipped.
    pub fn in_folder(folder: &Path) -> Rates {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut runs: Vec<(SystemTime, Run)> = entries.filter_map(|path| Run::read(&path)).collect();
        runs.sort_by(|(a, x), (b, y)| (b, &x.path).cmp(&(a, &y.path)));
        Rates { runs: runs.into_iter().map(|(_, run)| run).collect() }
    }

    /// Puts the run in a folder before these runs.
    pub fn after(mut self, run: &Path) -> Rates {
        self.runs.splice(0..0, Run::read(run).map(|(_, run)| run));
        self
    }

    /// The rate of the first run that did the same work as this stage on the same kind of device, and on the CPU with
    /// the same number of `threads`. The same work means the same model, data and passes; learning rate, length and
    /// seed may differ.
    pub fn of(&self, recipe: &Recipe, stage: &StageConfig, target: Target, threads: usize) -> Option<Rate> {
        self.runs.iter().find_map(|run| run.rate(recipe, stage, target, threads))
    }
}

impl Run {
    /// Reads the run in a folder, and the time of the last write to its log. `None` if the folder has no readable run.
    fn read(path: &Path) -> Option<(SystemTime, Run)> {
        let dir = RunDir::at(path);
        let recipe = Recipe::read(dir.recipe(), &[]).ok()?;
        let meta = fs::metadata(dir.log()).ok().filter(fs::Metadata::is_file)?;
        let log = fs::read(dir.log()).ok()?;
        let measured = Measured::of(&String::from_utf8_lossy(&log), recipe.crc32c());
        Some((meta.modified().ok()?, Run { path: path.to_path_buf(), recipe, measured }))
    }

    fn rate(&self, recipe: &Recipe, stage: &StageConfig, target: Target, threads: usize) -> Option<Rate> {
        let Measured { device, threads: measured_with, lines } = &self.measured;
        if kind(device) != target || (target != Target::Cuda && *measured_with != threads) {
            return None;
        }
        let alike = |other: &&StageConfig| is_same_work((recipe, stage), (&self.recipe, other));
        let other = self.recipe.stages.iter().find(alike)?;
        let here = lines.iter().filter(|line| line.stage == other.name).map(|line| line.images_per_s);
        let mut rates: Vec<f64> = here.filter(|rate| BELIEVABLE.contains(rate)).collect();
        if rates.len() < FEWEST_LINES {
            return None;
        }
        rates.sort_by(f64::total_cmp);
        let images_per_s = rates[rates.len() / 2];
        Some(Rate { images_per_s, run: self.path.clone(), device: device.clone(), threads: *measured_with })
    }
}

/// The kind of a device, from its name in a log.
fn kind(device: &str) -> Target {
    match device {
        "cpu" => Target::Cpu,
        "sim" => Target::Sim,
        _ => Target::Cuda,
    }
}

impl Measured {
    /// The log lines that were made with this recipe, on the device and thread count it last ran with.
    fn of(log: &str, recipe: u32) -> Measured {
        let mut measured = Measured::default();
        let mut is_of_recipe = false;
        let mut cold = 0;
        for event in log.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            match event {
                Event::Start(start) => {
                    is_of_recipe = start.recipe_crc32c == recipe;
                    cold = COLD_LINES;
                    if is_of_recipe && (&measured.device, measured.threads) != (&start.device, start.threads) {
                        measured = Measured { device: start.device, threads: start.threads, lines: Vec::new() };
                    }
                }
                Event::Stage(_) => cold = COLD_LINES,
                Event::Train(_) if !is_of_recipe => {}
                Event::Train(_) if cold > 0 => cold -= 1,
                Event::Train(train) => {
                    measured.lines.push(Line { stage: train.stage, images_per_s: train.images_per_s });
                }
                _ => {}
            }
        }
        measured
    }
}

/// Whether an image costs the same time in both stages, each given with its recipe.
fn is_same_work((recipe, a): (&Recipe, &StageConfig), (other, b): (&Recipe, &StageConfig)) -> bool {
    let step = |s: &StageConfig| (s.images_per_step, s.micro_batch, s.precision, s.recompute, s.batch_norm);
    let update = |s: &StageConfig| (s.frozen_stages, s.optimizer.kind, s.optimizer.state.dtype(), s.ema > 0.0);
    let images = |s: &StageConfig| (s.resize.clone(), s.colour_jitter);
    let loader = |r: &Recipe| (r.data.workers, r.data.prefetch, r.data.cache_mib);
    let data = |r: &Recipe| (r.data.train.clone(), r.data.shapes.clone());
    step(a) == step(b)
        && update(a) == update(b)
        && images(a) == images(b)
        && loader(recipe) == loader(other)
        && data(recipe) == data(other)
        && recipe.model == other.model
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = r#"{"event":"start","version":"0","recipe":"r","seed":0,"device":"DEVICE","threads":2,
        "classes":[],"parameters":1,"resumed_at":null,"recipe_crc32c":CRC}"#;

    fn start(device: &str, recipe: &Recipe) -> String {
        START.replace('\n', " ").replace("DEVICE", device).replace("CRC", &recipe.crc32c().to_string())
    }

    fn train(stage: &str, images_per_s: &str) -> String {
        format!(
            r#"{{"event":"train","stage":"{stage}","stage_index":0,"step":1,"global_step":1,"epoch":0.1,"lr":0.1,
            "losses":{{}},"grad_norm":1.0,"images_per_s":{images_per_s},
            "data_wait":0.0,"time_s":1.0,"memory_bytes":1}}"#
        )
        .replace('\n', " ")
    }

    fn write(folder: &Path, recipe: &Recipe, lines: &[String]) {
        let run = RunDir::create(Some(folder), recipe).unwrap();
        fs::write(run.log(), lines.join("\n")).unwrap();
    }

    fn recipe(overrides: &[&str]) -> Recipe {
        Recipe::built_in(&overrides.iter().map(|o| o.parse().unwrap()).collect::<Vec<_>>()).unwrap()
    }

    fn rate(rates: &Rates, recipe: &Recipe, target: Target, threads: usize) -> Option<f64> {
        rates.of(recipe, &recipe.stages[0], target, threads).map(|rate| rate.images_per_s)
    }

    /// Log lines with cold rates, then each of the given rates five times.
    fn lines_of(images_per_s: &[&str]) -> Vec<String> {
        let warm = images_per_s.iter().flat_map(|rate| [*rate; 5]);
        ["1e5"; COLD_LINES].into_iter().chain(warm).map(|rate| train("pretrain", rate)).collect()
    }

    /// A run on the CPU.
    fn run_of(images_per_s: [&str; 3]) -> Vec<String> {
        [start("cpu", &recipe(&[]))].into_iter().chain(lines_of(&images_per_s)).collect()
    }

    #[test]
    fn the_median_of_the_same_work() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("a"), &recipe(&[]), &run_of(["1.0", "30.0", "20.0"]));
        let rates = Rates::in_folder(folder.path());
        assert_eq!(rate(&rates, &recipe(&[]), Target::Cpu, 2), Some(20.0));
        for (why, other) in [
            ("a rate of learning", recipe(&["stage.pretrain.optimizer.lr=1e-5"])),
            ("a seed", recipe(&["seed=7"])),
            ("a length", recipe(&["stage.pretrain.epochs=1"])),
            ("another stage", recipe(&["stage.finetune.precision=f16"])),
        ] {
            assert_eq!(rate(&rates, &other, Target::Cpu, 2), Some(20.0), "{why}");
        }
        for key in
            ["precision=f16", "micro_batch=4", "recompute=blocks", "optimizer.state=bf16", "resize.size=96", "ema=0.9"]
        {
            let other = recipe(&[&format!("stage.pretrain.{key}")]);
            assert_eq!(rate(&rates, &other, Target::Cpu, 2), None, "{key}");
        }
        assert_eq!(rate(&rates, &recipe(&["model.backbone.width=0.25"]), Target::Cpu, 2), None);
        assert_eq!(rate(&rates, &recipe(&["data.train.images=elsewhere"]), Target::Cpu, 2), None);
        assert_eq!(rate(&rates, &recipe(&[]), Target::Cpu, 1), None, "threads");
        assert_eq!(rate(&rates, &recipe(&[]), Target::Sim, 2), None);
        let second = rates.of(&recipe(&[]), &recipe(&[]).stages[1], Target::Cpu, 2);
        assert_eq!(second, None, "a stage that has not begun");
    }

    #[test]
    fn a_run_that_went_on_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = run_of(["1.0", "2.0", "3.0"]);
        let other = recipe(&["stage.pretrain.precision=f16"]);
        lines.push(start("cpu", &other));
        lines.extend(lines_of(&["500.0", "500.0", "500.0"]));
        lines.push(start("cpu", &recipe(&[])));
        lines.extend(lines_of(&["2.0"]));
        write(&folder.path().join("cpu"), &recipe(&[]), &lines);
        let rates = Rates::in_folder(folder.path());
        assert_eq!(rate(&rates, &recipe(&[]), Target::Cpu, 2), Some(2.0));
        assert_eq!(rate(&rates, &other, Target::Cpu, 2), None, "the folder has another recipe");
        fs::remove_dir_all(folder.path().join("cpu")).unwrap();
        lines.push(start("cuda:0 (A GPU)", &recipe(&[])));
        lines.extend(lines_of(&["null", "-5.0", "1e300", "700.0", "800.0", "900.0"]));
        lines.push("{\"event\":\"tra".into()); // cut off
        write(&folder.path().join("a"), &recipe(&[]), &lines);
        let rates = Rates::in_folder(folder.path());
        assert_eq!(rate(&rates, &recipe(&[]), Target::Cpu, 2), None, "the last device counts");
        let gpu = rates.of(&recipe(&[]), &recipe(&[]).stages[0], Target::Cuda, 64).expect("threads are the CPU's");
        assert_eq!((gpu.images_per_s, &*gpu.device), (800.0, "cuda:0 (A GPU)"));
    }

    #[test]
    fn newer_runs_come_first_and_what_is_no_run_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(rate(&Rates::in_folder(&folder.path().join("absent")), &recipe(&[]), Target::Cpu, 2), None);
        for (i, name) in ["b", "a", "c"].into_iter().enumerate() {
            let path = folder.path().join(name);
            write(&path, &recipe(&[]), &run_of(["5.0", "5.0", "5.0"].map(|_| ["1.0", "2.0", "3.0"][i])));
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + i as u64);
            fs::File::options().append(true).open(path.join("log.jsonl")).unwrap().set_modified(at).unwrap();
        }
        fs::write(folder.path().join("file"), "").unwrap();
        fs::create_dir(folder.path().join("empty")).unwrap();
        write(&folder.path().join("short"), &recipe(&[]), &run_of(["9.0", "null", "null"]));
        let rates = Rates::in_folder(folder.path());
        assert_eq!(rate(&rates, &recipe(&[]), Target::Cpu, 2), Some(3.0));
        let rates = rates.after(&folder.path().join("a")).after(&folder.path().join("empty"));
        assert_eq!(rate(&rates, &recipe(&[]), Target::Cpu, 2), Some(2.0), "the run that goes on");
    }
}
