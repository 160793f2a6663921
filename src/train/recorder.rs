//! The observer of a run: passes its events on to the log, TensorBoard and the progress display, and keeps older
//! checkpoints. Main type: [`Recorder`].

use super::progress::Progress;
use crate::error::Result;
use crate::recipe::Recipe;
use crate::report::tensorboard::EventWriter;
use crate::run::checkpoint::Meta;
use crate::run::dir::RunDir;
use crate::run::event::{Event, Observer};
use crate::run::log::LogFile;

/// Writes the events of a run into its folder and shows them to the user.
pub struct Recorder {
    run: RunDir,
    /// Stage and global step of the checkpoint that the run resumes from.
    resumed: Option<(usize, u64)>,
    /// Opened at the first event, so that a run that is refused before its first event does not change the files.
    files: Option<(LogFile, EventWriter)>,
    progress: Progress,
    /// Number of older checkpoints to keep, for each stage.
    keep: Vec<usize>,
    stage: usize,
}

impl Recorder {
    /// A recorder for a new run, or for one that resumes from a checkpoint with the metadata `resumed`.
    pub fn new(run: &RunDir, recipe: &Recipe, resumed: Option<&Meta>, progress: Progress) -> Recorder {
        let keep = recipe.stages.iter().map(|stage| stage.keep_checkpoints).collect();
        let resumed = resumed.map(|meta| (meta.stage, meta.global_step));
        Recorder { run: run.clone(), resumed, files: None, progress, keep, stage: 0 }
    }

    fn open(&self) -> Result<(LogFile, EventWriter)> {
        let log = match self.resumed {
            Some((stage, global_step)) => LogFile::resume(&self.run.log(), stage, global_step)?,
            None => LogFile::create(&self.run.log())?,
        };
        Ok((log, EventWriter::create(self.run.path(), self.resumed.map(|(_, global_step)| global_step))?))
    }
}

impl Observer for Recorder {
    fn event(&mut self, event: &Event) -> Result<()> {
        if self.files.is_none() {
            self.files = Some(self.open()?);
        }
        if let Some((log, tensorboard)) = &mut self.files {
            log.write(event)?;
            tensorboard.event(event)?;
        }
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
    use super::*;
    use crate::run::event::{CheckpointWritten, End};
    use crate::run::log_reader::RunLog;

    #[test]
    fn a_run_and_its_resumption() {
        let folder = tempfile::tempdir().unwrap();
        let mut recipe = Recipe::built_in(&[]).unwrap();
        recipe.stages[0].keep_checkpoints = 2;
        let run = RunDir::create(Some(folder.path()), &recipe).unwrap();
        let quiet = || Progress::plain(&recipe, Box::new(std::io::sink()));
        let mut recorder = Recorder::new(&run, &recipe, None, quiet());
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
        let mut resumed = Recorder::new(&run, &recipe, Some(&meta), quiet());
        assert!(RunLog::read(&run.log()).unwrap().end.is_some(), "nothing happens before the run goes on");
        resumed.event(&save(20, run.last())).unwrap();
        assert!(RunLog::read(&run.log()).unwrap().end.is_none());
        let text = std::fs::read_to_string(run.log()).unwrap();
        assert_eq!(text.lines().count(), 4, "best and last of step 5, last of step 10, and what came now");
        let files = std::fs::read_dir(folder.path()).unwrap();
        let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.starts_with("events.out")).count(), 2);
    }
}
