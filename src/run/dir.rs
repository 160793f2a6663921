//! The folder of a run: `recipe.toml`, `log.jsonl`, `metrics.json`, `report.html`, TensorBoard events and
//! `checkpoints/{last,best,stage-NAME,step-N}.safetensors`.
//!
//! Main type: [`RunDir`].

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::output::make_folder;
use crate::output::{link_atomic, write_atomic};
use crate::recipe::Recipe;
use crate::recipe::read::Override;

/// The folder of runs without `--out`.
const DEFAULT_PARENT: &str = "runs";

/// The lock file, held by the process that trains in the folder.
const LOCK: &str = ".lock";

/// The folder of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Creates a new run in `out`, or in the next free `runs/NAME-N`, and writes `recipe.toml`.
    ///
    /// Errors: `Value` if `out` is not an empty folder (a run is never overwritten); `Io`.
    pub fn create(out: Option<&Path>, recipe: &Recipe) -> Result<RunDir> {
        let root = match out {
            Some(out) => {
                make_folder("--out", out)?;
                refuse_used(out)?;
                out.to_path_buf()
            }
            None => next_free(Path::new(DEFAULT_PARENT), &recipe.name)?,
        };
        let run = RunDir { root };
        fs::create_dir_all(run.checkpoints()).map_err(|error| Error::io(run.checkpoints(), error))?;
        run.write_recipe(recipe)?;
        Ok(run)
    }

    /// The run in `root`, without checking that there is one.
    pub fn at(root: &Path) -> RunDir {
        RunDir { root: root.to_path_buf() }
    }

    /// The folder that holds the neighbouring runs of `out`, or the runs without `--out`.
    pub fn parent(out: Option<&Path>) -> PathBuf {
        match out.and_then(Path::parent) {
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            Some(_) => PathBuf::from("."),
            None => PathBuf::from(DEFAULT_PARENT),
        }
    }

    /// Keeps other processes from training in the folder, until the returned file is dropped or this process ends.
    ///
    /// Errors: `Value` if another process trains in the folder; `Io`.
    pub fn lock(&self) -> Result<File> {
        let path = self.root.join(LOCK);
        let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let what = self.root.display().to_string();
                Err(Error::value(what, "another process is training in this folder: wait for its end, or end it"))
            }
            // Some file systems have no locks: training goes on without one.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        }
    }

    /// Whether another process trains in the folder. Does not disturb it.
    fn is_locked(&self) -> bool {
        let file = File::open(self.root.join(LOCK));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Opens a run to resume.
    ///
    /// Errors: `Value` if the folder lacks a recipe or a last checkpoint.
    pub fn resume(root: &Path) -> Result<RunDir> {
        let run = RunDir::at(root);
        let nothing = |what: String| Error::value("--resume", format!("nothing to resume: {what}"));
        if root.is_file() {
            return Err(nothing(format!("{} is a file: name the folder of the run", root.display())));
        }
        if !root.is_dir() {
            return Err(nothing(format!("{} does not exist", root.display())));
        }
        if !run.recipe().is_file() {
            return Err(nothing(format!("{} has no recipe.toml: it is not the folder of a run", root.display())));
        }
        if !run.last().is_file() {
            if run.is_locked() {
                let text = format!("another process trains in {}: wait for its first checkpoint", root.display());
                return Err(nothing(text));
            }
            let text = format!(
                "{} has no checkpoints/last.safetensors: the run ended before its first checkpoint; start it anew",
                root.display()
            );
            return Err(nothing(text));
        }
        Ok(run)
    }

    /// Removes temporary files that a killed process left. Needs the [lock](RunDir::lock).
    pub fn clear_half_written(&self) -> Result<()> {
        for folder in [self.root.clone(), self.checkpoints()] {
            let entries = fs::read_dir(&folder).map_err(|error| Error::io(&folder, error))?;
            for path in entries.flatten().map(|entry| entry.path()) {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                if name.starts_with('.') && name.ends_with(".tmp") {
                    fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
                }
            }
        }
        Ok(())
    }

    /// The folder of the run.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> PathBuf {
        self.root.join("recipe.toml")
    }

    /// The log, one JSON object per line.
    pub fn log(&self) -> PathBuf {
        self.root.join("log.jsonl")
    }

    /// The final metrics.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.json")
    }

    /// The report, a web page.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The newest checkpoint, from which `--resume` continues.
    pub fn last(&self) -> PathBuf {
        self.checkpoints().join("last.safetensors")
    }

    /// The checkpoint of the best evaluation.
    pub fn best(&self) -> PathBuf {
        self.checkpoints().join("best.safetensors")
    }

    /// The checkpoint of the end of a stage.
    pub fn stage(&self, name: &str) -> PathBuf {
        self.checkpoints().join(format!("stage-{name}.safetensors"))
    }

    /// A checkpoint that is kept under its step.
    pub fn step(&self, global_step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{global_step:09}.safetensors"))
    }

    /// A path relative to the folder, as in the log.
    pub fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Reads the run's recipe, with further overrides.
    pub fn read_recipe(&self, overrides: &[Override]) -> Result<Recipe> {
        Recipe::read(self.recipe(), overrides)
    }

    /// Writes `recipe.toml`.
    pub fn write_recipe(&self, recipe: &Recipe) -> Result<()> {
        write_atomic(&self.recipe(), |file| file.write_all(recipe.to_toml().as_bytes()))
    }

    /// Writes `metrics.json`.
    pub fn write_metrics(&self, metrics: &serde_json::Value) -> Result<()> {
        write_atomic(&self.metrics(), |file| writeln!(file, "{metrics:#}"))
    }

    /// Removes the folder of a run that failed without a checkpoint and without a step in the log, so that the same
    /// command works once the cause of the failure is fixed.
    pub fn discard_unbegun(&self) -> Result<()> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        if self.last().exists() || log.contains(r#""event":"train""#) {
            return Ok(());
        }
        fs::remove_dir_all(&self.root).map_err(|error| Error::io(&self.root, error))
    }

    /// Keeps the last checkpoint under its step, and removes all but the newest `keep` of these. Does nothing if `keep`
    /// is 0.
    pub fn keep_step(&self, global_step: u64, keep: usize) -> Result<()> {
        if keep == 0 {
            return Ok(());
        }
        link_atomic(&self.last(), &self.step(global_step))?;
        let mut kept = self.steps()?;
        kept.sort_unstable();
        for step in &kept[..kept.len().saturating_sub(keep)] {
            fs::remove_file(self.step(*step)).map_err(|error| Error::io(self.step(*step), error))?;
        }
        Ok(())
    }

    /// The steps of the checkpoints that are kept under their step.
    fn steps(&self) -> Result<Vec<u64>> {
        let folder = self.checkpoints();
        let entries = fs::read_dir(&folder).map_err(|error| Error::io(&folder, error))?;
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let step = |name: String| name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok();
        Ok(names.filter_map(step).collect())
    }
}

/// Refuses a folder that is not empty.
fn refuse_used(out: &Path) -> Result<()> {
    let refuse = |what: &str| Err(Error::value("--out", format!("{} {what}", out.display())));
    match fs::read_dir(out) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) if out.join("checkpoints/last.safetensors").exists() => {
                refuse("holds a run already: go on with it by --resume, or name another folder")
            }
            Some(_) if out.join("recipe.toml").exists() => {
                refuse("holds a run without a checkpoint: remove it if it has ended, or name another folder")
            }
            Some(_) => refuse("is not empty: name another folder"),
        },
        Err(error) => Err(Error::io(out, error)),
    }
}

/// Creates `parent/name-n`. `n` is one more than the highest number in use, so that runs stay in the order of their
/// numbers.
fn next_free(parent: &Path, name: &str) -> Result<PathBuf> {
    make_folder("--out", parent)?;
    let entries = fs::read_dir(parent).map_err(|error| Error::io(parent, error))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let number = |entry: String| entry.strip_prefix(name)?.strip_prefix('-')?.parse::<u64>().ok();
    let mut n = 1 + names.filter_map(number).max().unwrap_or(0);
    loop {
        let path = parent.join(format!("{name}-{n}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // Another run has taken the name in the meantime.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => n += 1,
            Err(error) => return Err(Error::io(&path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe::built_in(&[]).unwrap()
    }

    #[test]
    fn a_run_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/b");
        let run = RunDir::create(Some(&out), &recipe()).unwrap();
        assert!(run.checkpoints().is_dir());
        assert_eq!(run.read_recipe(&[]).unwrap(), recipe());
        let refused = || RunDir::create(Some(&out), &recipe()).unwrap_err().to_string();
        assert!(refused().contains("without a checkpoint"), "{}", refused());
        fs::write(run.last(), "").unwrap();
        assert!(refused().contains("holds a run already") && refused().contains("--resume"), "{}", refused());

        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        RunDir::create(Some(&other), &recipe()).expect("an empty folder is fine");
        let files = folder.path().join("files");
        fs::create_dir(&files).unwrap();
        fs::write(files.join("x"), "").unwrap();
        assert!(RunDir::create(Some(&files), &recipe()).unwrap_err().to_string().contains("is not empty"));
        assert!(RunDir::create(Some(&files.join("x")), &recipe()).unwrap_err().to_string().contains("is a file"));
    }

    #[test]
    fn only_a_run_that_never_began_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(&folder.path().join("a")), &recipe()).unwrap();
        for (file, text) in [(run.log(), "{\"event\":\"train\"}\n"), (run.last(), "")] {
            fs::write(&file, text).unwrap();
            run.discard_unbegun().unwrap();
            assert!(run.path().is_dir());
            fs::remove_file(file).unwrap();
        }
        fs::write(run.log(), "{\"event\":\"start\"}\n").unwrap();
        run.discard_unbegun().unwrap();
        assert!(!run.path().exists());
    }

    #[test]
    fn default_folders_count_up() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(next_free(folder.path(), "shapes").unwrap(), folder.path().join("shapes-1"));
        fs::create_dir(folder.path().join("shapes-9")).unwrap();
        fs::create_dir(folder.path().join("shapes-x")).unwrap();
        fs::create_dir(folder.path().join("shapes-new-20")).unwrap();
        assert_eq!(next_free(folder.path(), "shapes").unwrap(), folder.path().join("shapes-10"));
        assert_eq!(next_free(folder.path(), "bccd").unwrap(), folder.path().join("bccd-1"));
    }

    #[test]
    fn resume_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let refuses = |path: &Path, want: &str| {
            let error = RunDir::resume(path).unwrap_err().to_string();
            assert!(error.starts_with("--resume: nothing to resume: ") && error.contains(want), "{error}");
        };
        let out = folder.path().join("run");
        refuses(&out, "does not exist");
        refuses(folder.path(), "has no recipe.toml");
        let run = RunDir::create(Some(&out), &recipe()).unwrap();
        refuses(&out, "before its first checkpoint");
        refuses(&run.recipe(), "is a file");
        let lock = run.lock().unwrap();
        refuses(&out, "wait for its first checkpoint");
        drop(lock);
        fs::write(run.last(), "x").unwrap();
        fs::write(run.checkpoints().join(".last.safetensors.tmp"), "half").unwrap();
        assert_eq!(RunDir::resume(&out).unwrap(), run);
        run.clear_half_written().unwrap();
        assert_eq!(fs::read_dir(run.checkpoints()).unwrap().count(), 1, "what was half written is gone");
    }

    #[test]
    fn only_the_newest_steps_stay() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(folder.path()), &recipe()).unwrap();
        for step in [5, 10, 1_000_000_000, 100] {
            write_atomic(&run.last(), |file| write!(file, "{step}")).unwrap();
            run.keep_step(step, 2).unwrap();
        }
        let mut kept = run.steps().unwrap();
        kept.sort_unstable();
        assert_eq!(kept, [100, 1_000_000_000]);
        assert_eq!(fs::read_to_string(run.step(100)).unwrap(), "100");
        assert_eq!(run.relative(&run.best()), "checkpoints/best.safetensors");
        run.keep_step(7, 0).unwrap();
        assert_eq!(run.steps().unwrap().len(), 2);
    }

    #[test]
    fn metrics_are_json() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(folder.path()), &recipe()).unwrap();
        run.write_metrics(&serde_json::json!({ "bbox_ap": 0.5 })).unwrap();
        let back: serde_json::Value = serde_json::from_slice(&fs::read(run.metrics()).unwrap()).unwrap();
        assert_eq!(back["bbox_ap"], 0.5);
    }
}
