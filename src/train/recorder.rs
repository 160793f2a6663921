//! Everything that listens to a run: its log, TensorBoard, the progress display, and the checkpoints kept by step.

use super::checkpoint::Meta;
use super::event::{Event, Observer};
use super::log::LogFile;
use super::progress::Progress;
use super::recipe::Recipe;
use super::run_dir::RunDir;
use crate::error::Result;
use crate::report::tensorboard::EventWriter;

/// Writes what a run tells into its folder and to the user.
pub struct Recorder {
    run: RunDir,
    log: LogFile,
    tensorboard: EventWriter,
    progress: Progress,
    /// Checkpoints to keep by step, of each stage.
    keep: Vec<usize>,
    stage: usize,
}

impl Recorder {
    /// For a new run, or one that goes on from a checkpoint with `resumed` as its metadata.
    pub fn new(run: &RunDir, recipe: &Recipe, resumed: Option<&Meta>, progress: Progress) -> Result<Recorder> {
        let log = match resumed {
            Some(meta) => LogFile::resume(&run.log(), meta.stage, meta.global_step)?,
            None => LogFile::create(&run.log())?,
        };
        let tensorboard = EventWriter::create(run.path(), resumed.map(|meta| meta.global_step))?;
        let keep = recipe.stages.iter().map(|stage| stage.keep_checkpoints).collect();
        Ok(Recorder { run: run.clone(), log, tensorboard, progress, keep, stage: 0 })
    }
}

impl Observer for Recorder {
    fn event(&mut self, event: &Event) -> Result<()> {
        self.log.write(event)?;
        self.tensorboard.event(event)?;
        self.progress.event(event)?;
        match event {
            Event::Stage(stage) => self.stage = stage.stage_index,
            Event::Checkpoint(written) if std::path::Path::new(&written.path) == self.run.last() => {
                let keep = self.keep.get(self.stage).copied().unwrap_or(0);
                self.run.keep_step(written.global_step, keep)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn note(&mut self, line: &str) {
        self.progress.note(line);
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{CheckpointWritten, End};
    use super::*;
    use crate::report::log::RunLog;

    #[test]
    fn a_run_and_its_resumption() {
        let folder = tempfile::tempdir().unwrap();
        let mut recipe = Recipe::built_in(&[]).unwrap();
        recipe.stages[0].keep_checkpoints = 2;
        let run = RunDir::create(Some(folder.path()), &recipe).unwrap();
        let quiet = || Progress::plain(&recipe, Box::new(std::io::sink()));
        let mut recorder = Recorder::new(&run, &recipe, None, quiet()).unwrap();
        let save = |step: u64, path: std::path::PathBuf| {
            std::fs::write(&path, step.to_string()).unwrap();
            Event::Checkpoint(CheckpointWritten { path: path.display().to_string(), global_step: step })
        };
        for step in [5, 10, 15] {
            recorder.event(&save(step, run.last())).unwrap();
            recorder.event(&save(step, run.best())).unwrap();
        }
        let end = End { reason: "done".into(), global_step: 15, time_s: 1.0, data_wait: 0.0 };
        recorder.event(&Event::End(end)).unwrap();
        assert!(!run.step(5).exists() && run.step(10).exists() && run.step(15).exists());
        assert!(RunLog::read(&run.log()).unwrap().end.is_some());

        let meta = Meta { global_step: 10, ..Meta::new(String::new(), vec![], vec![]) };
        Recorder::new(&run, &recipe, Some(&meta), quiet()).unwrap();
        assert!(RunLog::read(&run.log()).unwrap().end.is_none());
        let text = std::fs::read_to_string(run.log()).unwrap();
        assert_eq!(text.lines().count(), 4, "both files of steps 5 and 10");
        let files = std::fs::read_dir(folder.path()).unwrap();
        let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.starts_with("events.out")).count(), 2);
    }
}
