//! Writes `log.jsonl`, one [`LogEvent`] a line; a run that goes on drops the lines that it will write again.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::report::log::LogEvent;

/// The log of a run, open for writing. Each line reaches the system at once: a killed process loses none.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// A new log.
    pub fn create(path: &Path) -> Result<LogFile> {
        let file = File::create(path).map_err(|error| Error::io(path, error))?;
        Ok(LogFile { path: path.to_path_buf(), file })
    }

    /// Goes on with a log from a checkpoint that was made in stage `stage_index` after `global_step` steps of the run:
    /// lines of later steps, later stages and the end are dropped, and so is a last line that was cut off.
    pub fn resume(path: &Path, stage_index: usize, global_step: u64) -> Result<LogFile> {
        if path.exists() {
            let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
            let text = String::from_utf8_lossy(&bytes);
            let kept = text.lines().filter(|line| is_before(line, stage_index, global_step));
            write_atomic(path, |file| kept.into_iter().try_for_each(|line| writeln!(file, "{line}")))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| Error::io(path, error))?;
        Ok(LogFile { path: path.to_path_buf(), file })
    }

    /// Adds one line.
    pub fn write(&mut self, event: &LogEvent) -> Result<()> {
        let line = event.to_line()? + "\n";
        self.file.write_all(line.as_bytes()).map_err(|error| Error::io(&self.path, error))
    }
}

/// Whether a line tells of what was done up to a checkpoint. Lines of other versions stay, if they are JSON.
fn is_before(line: &str, stage_index: usize, global_step: u64) -> bool {
    match serde_json::from_str::<LogEvent>(line) {
        Ok(LogEvent::Start(_)) => true,
        Ok(LogEvent::Stage(line)) => line.stage_index <= stage_index && line.global_step <= global_step,
        Ok(LogEvent::Train(line)) => line.stage_index <= stage_index && line.global_step <= global_step,
        Ok(LogEvent::Eval(line)) => line.stage_index <= stage_index && line.global_step <= global_step,
        Ok(LogEvent::Checkpoint(line)) => line.global_step <= global_step,
        Ok(LogEvent::End(_)) => false,
        Ok(LogEvent::Unknown) => true,
        Err(_) => serde_json::from_str::<serde_json::Value>(line).is_ok_and(|value| value.is_object()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::log::{CheckpointLine, EndLine, EvalLine, RunLog, StageLine, StartLine, TrainLine};

    fn train(stage_index: usize, global_step: u64) -> LogEvent {
        LogEvent::Train(TrainLine { stage_index, global_step, ..Default::default() })
    }

    fn stage(stage_index: usize, global_step: u64) -> LogEvent {
        LogEvent::Stage(StageLine { stage_index, global_step, ..Default::default() })
    }

    fn checkpoint(global_step: u64) -> LogEvent {
        LogEvent::Checkpoint(CheckpointLine { path: "x".into(), global_step })
    }

    fn eval(stage_index: usize, global_step: u64) -> LogEvent {
        LogEvent::Eval(EvalLine { stage_index, global_step, ..Default::default() })
    }

    #[test]
    fn a_resumed_log_has_no_line_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let start = || LogEvent::Start(StartLine { seed: 1, ..Default::default() });
        let before = [start(), stage(0, 0), train(0, 1), train(0, 2), eval(0, 2), checkpoint(2)];
        let after = [stage(1, 2), train(1, 3), eval(1, 3), checkpoint(3), LogEvent::End(EndLine::default())];
        let mut log = LogFile::create(&path).unwrap();
        for event in before.iter().chain(&after) {
            log.write(event).unwrap();
        }
        drop(log);
        // A process was killed while it wrote.
        let mut text = std::fs::read_to_string(&path).unwrap();
        let whole = text.lines().count();
        assert_eq!(whole, before.len() + after.len());
        text += "{\"event\":\"weather\",\"rain\":true}\n{\"event\":\"train\",\"sta";
        std::fs::write(&path, &text).unwrap();

        let mut log = LogFile::resume(&path, 0, 2).unwrap();
        let kept = std::fs::read_to_string(&path).unwrap();
        let want = before.iter().map(|event| event.to_line().unwrap() + "\n").collect::<String>();
        assert_eq!(kept, want + "{\"event\":\"weather\",\"rain\":true}\n");
        after.iter().for_each(|event| log.write(event).unwrap());
        let read = RunLog::read(&path).unwrap();
        assert_eq!((read.train.len(), read.evals.len(), read.stages.len(), read.skipped), (3, 2, 2, 0));
        assert!(read.end.is_some());

        // In the middle of the second stage its own beginning stays.
        LogFile::resume(&path, 1, 2).unwrap();
        let read = RunLog::read(&path).unwrap();
        assert_eq!((read.train.len(), read.stages.len()), (2, 2));
    }

    #[test]
    fn a_log_that_was_deleted_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        LogFile::resume(&path, 0, 5).unwrap().write(&train(0, 6)).unwrap();
        assert_eq!(RunLog::read(&path).unwrap().train.len(), 1);
        let error = LogFile::create(&folder.path().join("none/log.jsonl")).unwrap_err().to_string();
        assert!(error.contains("none/log.jsonl"), "{error}");
    }
}
