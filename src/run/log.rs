//! Writes `log.jsonl`, one [`Event`] per line. A resumed run drops the lines that it will write again.
//!
//! Main type: [`LogFile`].

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::event::Event;
use crate::error::{Error, Result};
use crate::output::write_atomic;

/// The log of a run, open for writing. Each line is passed to the system at once: a killed process loses none.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Stages whose beginning is in the log. A resumed stage does not begin twice.
    begun: Vec<usize>,
}

impl LogFile {
    /// Creates a new log.
    pub fn create(path: &Path) -> Result<LogFile> {
        let file = File::create(path).map_err(|error| Error::io(path, error))?;
        Ok(LogFile { path: path.to_path_buf(), file, begun: Vec::new() })
    }

    /// Continues a log from a checkpoint that was written in stage `stage_index` after `global_step` steps of the run.
    /// Drops the lines that came after the checkpoint, and lines that were cut off.
    pub fn resume(path: &Path, stage_index: usize, global_step: u64) -> Result<LogFile> {
        let mut begun = Vec::new();
        if path.exists() {
            let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
            let text = String::from_utf8_lossy(&bytes);
            let mut kept = text.lines().filter_map(|line| Some((Place::of(line)?, line))).collect::<Vec<_>>();
            kept.retain(|(place, _)| place.is_before(stage_index, global_step));
            // Lines of the same step after the checkpoint's own line (such as the last evaluation) will be written
            // again.
            let own =
                kept.iter().rposition(|(place, _)| place.is_last_checkpoint() && place.global_step == global_step);
            kept.truncate(own.map_or(kept.len(), |own| own + 1));
            begun.extend(kept.iter().filter(|(place, _)| place.event == "stage").map(|(place, _)| place.stage_index));
            write_atomic(path, |file| kept.iter().try_for_each(|(_, line)| writeln!(file, "{line}")))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| Error::io(path, error))?;
        Ok(LogFile { path: path.to_path_buf(), file, begun })
    }

    /// Adds one line. Numbers that are not finite are written as `null`.
    pub fn write(&mut self, event: &Event) -> Result<()> {
        if let Event::Stage(stage) = event {
            if self.begun.contains(&stage.stage_index) {
                return Ok(());
            }
            self.begun.push(stage.stage_index);
        }
        let line = serde_json::to_string(event).map_err(|error| Error::value("log", error.to_string()))? + "\n";
        self.file.write_all(line.as_bytes()).map_err(|error| Error::io(&self.path, error))
    }
}

/// The fields that decide whether a line is kept. All other fields may be anything.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Place {
    event: String,
    stage_index: usize,
    global_step: u64,
    path: String,
}

impl Place {
    /// Parses a line; `None` if it is not a JSON object. Lines of other versions are accepted.
    fn of(line: &str) -> Option<Place> {
        serde_json::from_str(line).ok()
    }

    /// Whether the line is about the checkpoint from which runs are resumed.
    fn is_last_checkpoint(&self) -> bool {
        self.event == "checkpoint" && Path::new(&self.path).file_stem().is_some_and(|stem| stem == "last")
    }

    /// Whether the line is about something that happened up to a checkpoint.
    fn is_before(&self, stage_index: usize, global_step: u64) -> bool {
        let before = self.stage_index <= stage_index && self.global_step <= global_step;
        self.event == "start" || (self.event != "end" && before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a log, counted by their event.
    struct Lines {
        text: String,
        all: Vec<serde_json::Value>,
        /// Lines that are not JSON.
        skipped: usize,
    }

    impl Lines {
        fn read(path: &Path) -> Lines {
            let text = std::fs::read_to_string(path).unwrap();
            let parsed = text.lines().map(serde_json::from_str).collect::<Vec<serde_json::Result<_>>>();
            let skipped = parsed.iter().filter(|line| line.is_err()).count();
            Lines { all: parsed.into_iter().flatten().collect(), skipped, text }
        }

        fn of(&self, event: &str) -> usize {
            self.all.iter().filter(|line| line["event"] == event).count()
        }
    }

    /// A line as an event; fields that do not matter here are filled in.
    fn event(line: &str) -> Event {
        let mut value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let fill = serde_json::json!({
            "version": "", "recipe": "", "seed": 1, "device": "", "threads": 1, "classes": [], "parameters": 1,
            "stage": "s", "stages": 2, "steps": 1, "steps_per_epoch": 1, "total_steps": 3, "images": 1, "buckets": [],
            "persistent_bytes": 1, "arena_bytes": 1, "step": 1, "epoch": 1.0, "lr": 0.1, "losses": { "loss": 1.5 },
            "grad_norm": 1.0, "images_per_s": 1.0, "data_wait": 0.0, "time_s": 1.0, "memory_bytes": 1, "split": "val",
            "metrics": {}, "per_class": {}, "path": "c/last.safetensors", "reason": "done",
        });
        let fill = fill.as_object().unwrap().clone();
        for (key, filler) in fill {
            value.entry(key).or_insert(filler);
        }
        serde_json::from_value(value.into()).unwrap()
    }

    fn line(event: &Event) -> String {
        serde_json::to_string(event).unwrap() + "\n"
    }

    #[test]
    fn a_resumed_log_has_no_line_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let before = [
            event(r#"{"event":"start"}"#),
            event(r#"{"event":"stage","stage_index":0,"global_step":0}"#),
            event(r#"{"event":"train","stage_index":0,"global_step":1}"#),
            event(r#"{"event":"train","stage_index":0,"global_step":2}"#),
            event(r#"{"event":"eval","stage_index":0,"global_step":2}"#),
            event(r#"{"event":"checkpoint","global_step":2}"#),
        ];
        let after = [
            event(r#"{"event":"stage","stage_index":1,"global_step":2}"#),
            event(r#"{"event":"train","stage_index":1,"global_step":3}"#),
            event(r#"{"event":"eval","stage_index":1,"global_step":3}"#),
            event(r#"{"event":"checkpoint","global_step":3}"#),
            event(r#"{"event":"end","global_step":3}"#),
        ];
        let mut log = LogFile::create(&path).unwrap();
        for event in before.iter().chain(&after) {
            log.write(event).unwrap();
        }
        drop(log);
        let mut text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), before.len() + after.len());
        // A process was killed while it wrote.
        text += "{\"event\":\"weather\",\"rain\":true}\n{\"event\":\"train\",\"sta";
        std::fs::write(&path, &text).unwrap();

        let mut log = LogFile::resume(&path, 0, 2).unwrap();
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept, before.iter().map(line).collect::<String>());
        log.write(&event(r#"{"event":"stage","stage_index":0,"global_step":2}"#)).unwrap();
        after.iter().for_each(|event| log.write(event).unwrap());
        let read = Lines::read(&path);
        assert_eq!((read.of("train"), read.of("eval"), read.of("stage"), read.skipped), (3, 2, 2, 0));
        assert_eq!(read.of("end"), 1);

        // Without the checkpoint's own line, steps and stages decide; lines of another version stay.
        std::fs::write(&path, text.replace("checkpoint", "weather")).unwrap();
        LogFile::resume(&path, 1, 2).unwrap();
        let read = Lines::read(&path);
        assert_eq!((read.of("train"), read.of("stage"), read.skipped), (2, 2, 0));
        assert!(read.text.contains("rain"));
    }

    #[test]
    fn a_log_that_was_deleted_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let train = event(r#"{"event":"train","stage_index":0,"global_step":6}"#);
        LogFile::resume(&path, 0, 5).unwrap().write(&train).unwrap();
        assert_eq!(Lines::read(&path).of("train"), 1);
        let error = LogFile::create(&folder.path().join("none/log.jsonl")).unwrap_err().to_string();
        assert!(error.contains("none/log.jsonl"), "{error}");
    }

    #[test]
    fn numbers_that_are_not_finite_stay_readable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let Event::Train(mut train) = event(r#"{"event":"train","stage_index":0,"global_step":6}"#) else { panic!() };
        train.lr = f64::NAN;
        train.losses.insert("loss".into(), f64::INFINITY);
        LogFile::create(&path).unwrap().write(&Event::Train(train)).unwrap();
        let read = Lines::read(&path);
        assert!(read.all[0]["lr"].is_null() && read.all[0]["losses"]["loss"].is_null());
        assert!(Place::of(read.text.trim()).unwrap().is_before(0, 6));
    }
}
