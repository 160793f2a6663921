//! Reads `log.jsonl`. Training writes it, one [`crate::run::event::Event`] a line; the types of this module hold the
//! fields that the report needs. The reader accepts files that were cut off, numbers that are not finite, and keys and
//! lines of other versions. Main type: [`RunLog`].

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

/// A line of the log. `Other` stands for the events that the report does not need.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Start(StartLine),
    Stage(StageLine),
    Train(TrainLine),
    Eval(EvalLine),
    End(EndLine),
    #[serde(other)]
    Other,
}

/// The run was started or resumed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StartLine {
    /// Version of upres.
    pub version: String,
    /// Seed of the run.
    pub seed: u64,
    /// Description of the device.
    pub device: String,
    /// Threads of the CPU back end.
    pub threads: usize,
    /// Number of parameters.
    pub parameters: usize,
}

/// A stage was started or resumed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StageLine {
    /// Name of the stage.
    pub stage: String,
    /// Index of the stage in the recipe, from 0.
    pub stage_index: usize,
    /// Planned bytes of parameters, optimizer state and inputs.
    pub persistent_bytes: u64,
    /// Planned bytes of the step's arena.
    pub arena_bytes: u64,
}

/// Training progress. Losses and speed are means since the previous line of this kind.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TrainLine {
    /// Name of the stage.
    pub stage: String,
    /// Index of the stage in the recipe, from 0.
    pub stage_index: usize,
    /// Steps done in this stage.
    pub step: u64,
    /// Steps done in all stages.
    pub global_step: u64,
    /// Epochs done in this stage.
    #[serde(deserialize_with = "lenient")]
    pub epoch: f64,
    /// Learning rate.
    #[serde(deserialize_with = "lenient")]
    pub lr: f64,
    /// Losses by name; `loss` is their sum.
    #[serde(deserialize_with = "lenient_map")]
    pub losses: BTreeMap<String, f64>,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "lenient")]
    pub grad_norm: f64,
    /// Images trained on per second.
    #[serde(deserialize_with = "lenient")]
    pub images_per_s: f64,
    /// Share of the time spent waiting for data, 0 to 1.
    #[serde(deserialize_with = "lenient")]
    pub data_wait: f64,
    /// Seconds of training so far, over all stages and resumptions.
    #[serde(deserialize_with = "lenient")]
    pub time_s: f64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
}

/// An evaluation.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EvalLine {
    /// Name of the stage.
    pub stage: String,
    /// Index of the stage in the recipe, from 0.
    pub stage_index: usize,
    /// `val` or `test`.
    pub split: String,
    /// Steps done in all stages.
    pub global_step: u64,
    /// Epochs done in this stage.
    #[serde(deserialize_with = "lenient")]
    pub epoch: f64,
    /// Seconds of training so far, over all stages and resumptions.
    #[serde(deserialize_with = "lenient")]
    pub time_s: f64,
    /// COCO metrics by key, `bbox_ap` and so on, 0 to 1; -1 if there is no ground truth for the metric.
    #[serde(deserialize_with = "lenient_map")]
    pub metrics: BTreeMap<String, f64>,
    /// AP of each class by name.
    #[serde(deserialize_with = "lenient_map")]
    pub per_class: BTreeMap<String, f64>,
}

/// The run ended.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EndLine {
    /// `done`, `stopped` or an error.
    pub reason: String,
    /// Seconds of training over all stages and resumptions.
    #[serde(deserialize_with = "lenient")]
    pub time_s: f64,
}

/// A number. A null or a word is NaN; serde_json writes NaN as null.
fn lenient<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<f64, D::Error> {
    Ok(number(&serde_json::Value::deserialize(d)?))
}

fn lenient_map<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<BTreeMap<String, f64>, D::Error> {
    let map = Option::<BTreeMap<String, serde_json::Value>>::deserialize(d)?.unwrap_or_default();
    Ok(map.into_iter().map(|(k, v)| (k, number(&v))).collect())
}

/// A JSON value as a number; NaN if it is not one.
pub fn number(v: &serde_json::Value) -> f64 {
    v.as_f64().or_else(|| v.as_str().and_then(|s| s.parse().ok())).unwrap_or(f64::NAN)
}

/// The log of a run, ordered by step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunLog {
    /// The last start or resumption.
    pub start: Option<StartLine>,
    /// Stages, each one once.
    pub stages: Vec<StageLine>,
    /// Training progress.
    pub train: Vec<TrainLine>,
    /// Evaluations during training, without those on the test split.
    pub evals: Vec<EvalLine>,
    /// The end; `None` if the run still goes on or was killed.
    pub end: Option<EndLine>,
    /// Number of lines that could not be read.
    pub skipped: usize,
}

impl RunLog {
    /// Reads a log file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Parses a log. If steps were done twice, because the run was resumed from an earlier checkpoint, the later lines
    /// replace the earlier ones.
    fn parse(text: &str) -> Self {
        let mut log = RunLog::default();
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            match parse_line(line) {
                Some(Line::Start(s)) => {
                    log.start = Some(s);
                    log.end = None;
                }
                Some(Line::Stage(s)) => {
                    log.stages.retain(|o| o.stage_index < s.stage_index);
                    log.stages.push(s);
                }
                Some(Line::Train(t)) => {
                    drop_from(&mut log.train, |l| l.global_step, t.global_step);
                    drop_from(&mut log.evals, |l| l.global_step, t.global_step);
                    log.train.push(t);
                }
                Some(Line::Eval(e)) if e.split != "test" => {
                    drop_from(&mut log.evals, |l| l.global_step, e.global_step);
                    log.evals.push(e);
                }
                Some(Line::End(e)) => log.end = Some(e),
                Some(Line::Eval(_) | Line::Other) => {}
                None => log.skipped += 1,
            }
        }
        log
    }

    /// Epochs done before each stage, by stage index.
    pub fn epochs_before(&self) -> Vec<f64> {
        let stages = self.stage_names().len();
        let mut last = vec![0.0f64; stages];
        let seen = self.train.iter().map(|t| (t.stage_index, t.epoch));
        for (stage, epoch) in seen.chain(self.evals.iter().map(|e| (e.stage_index, e.epoch))) {
            if let Some(l) = last.get_mut(stage) {
                *l = l.max(epoch); // `max` ignores NaN
            }
        }
        last.iter().scan(0.0, |sum, l| Some(std::mem::replace(sum, *sum + l))).collect()
    }

    /// Names of the stages by index.
    pub fn stage_names(&self) -> Vec<String> {
        let mut names: BTreeMap<usize, &str> = BTreeMap::new();
        names.extend(self.evals.iter().map(|e| (e.stage_index, e.stage.as_str())));
        names.extend(self.train.iter().map(|t| (t.stage_index, t.stage.as_str())));
        names.extend(self.stages.iter().map(|s| (s.stage_index, s.stage.as_str())));
        const MOST: usize = 64; // a damaged index must not give a long list
        let count = names.keys().last().map_or(0, |&l| (l + 1).min(MOST));
        (0..count).map(|i| names.get(&i).map_or_else(|| format!("stage {i}"), |n| n.to_string())).collect()
    }

    /// Time in seconds at which each stage began, by stage index: the end of the stages before it. NaN if unknown.
    pub fn stage_times(&self) -> Vec<f64> {
        let begin = |i: usize| {
            let before = self.train.iter().rfind(|t| t.stage_index < i).map(|t| t.time_s);
            let evaluated = self.evals.iter().rfind(|e| e.stage_index < i).map(|e| e.time_s);
            let last = before.into_iter().chain(evaluated).fold(f64::NAN, f64::max);
            if i == 0 { 0.0 } else { last }
        };
        (0..self.stage_names().len()).map(begin).collect()
    }

    /// Seconds of training that the log covers.
    pub fn total_time(&self) -> f64 {
        let times = self.train.iter().map(|t| t.time_s).chain(self.evals.iter().map(|e| e.time_s));
        times.chain(self.end.iter().map(|e| e.time_s)).fold(0.0, f64::max)
    }

    /// A metric of each evaluation over the training time in seconds.
    pub fn metric_over_time(&self, key: &str) -> Vec<(f64, f64)> {
        let value = |e: &EvalLine| e.metrics.get(key).copied().unwrap_or(f64::NAN);
        finite(self.evals.iter().map(|e| (e.time_s, value(e))))
    }

    /// A metric of each evaluation over epochs, counted across all stages.
    pub fn metric_over_epochs(&self, key: &str) -> Vec<(f64, f64)> {
        let before = self.epochs_before();
        let value = |e: &EvalLine| e.metrics.get(key).copied().unwrap_or(f64::NAN);
        let place = |e: &EvalLine| before.get(e.stage_index).copied().unwrap_or(f64::NAN) + e.epoch;
        finite(self.evals.iter().map(|e| (place(e), value(e))))
    }
}

/// Drops the last lines as far as they are of `step` or a later step.
fn drop_from<T>(lines: &mut Vec<T>, step_of: impl Fn(&T) -> u64, step: u64) {
    while lines.last().is_some_and(|line| step_of(line) >= step) {
        lines.pop();
    }
}

/// The points whose coordinates are both finite.
pub fn finite(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    points.filter(|p| p.0.is_finite() && p.1.is_finite()).collect()
}

fn parse_line(line: &str) -> Option<Line> {
    serde_json::from_str(line).ok().or_else(|| serde_json::from_str(&without_bare_nan(line)).ok())
}

/// Replaces bare `NaN` and `Infinity`, which other JSON writers produce, by `null`. Strings stay as they are.
pub(crate) fn without_bare_nan(line: &str) -> String {
    let (mut out, mut rest, mut in_string) = (String::with_capacity(line.len()), line, false);
    while let Some(c) = rest.chars().next() {
        if !in_string {
            if let Some(word) =
                ["NaN", "nan", "-Infinity", "Infinity", "-inf", "inf"].iter().find(|w| rest.starts_with(**w))
            {
                out.push_str("null");
                rest = &rest[word.len()..];
                continue;
            }
        } else if c == '\\' {
            let two = rest.char_indices().nth(2).map_or(rest.len(), |(i, _)| i);
            out.push_str(&rest[..two]);
            rest = &rest[two..];
            continue;
        }
        if c == '"' {
            in_string = !in_string;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agreed_form_is_read() {
        let line = r#"{"event":"train","stage":"pretrain","stage_index":0,"step":120,"global_step":120,"epoch":1.2,
            "lr":0.01,"losses":{"loss":1.2,"rpn_cls":0.3},"grad_norm":2.5,"images_per_s":31.5,"data_wait":0.02,
            "time_s":33.1,"memory_bytes":1000000}"#;
        let Some(Line::Train(t)) = parse_line(line) else { panic!() };
        assert_eq!((t.step, t.lr, t.losses["rpn_cls"], t.memory_bytes), (120, 0.01, 0.3, 1_000_000));
        let line = r#"{"event":"eval","stage":"pretrain","stage_index":0,"step":5,"global_step":5,"epoch":1.0,
            "time_s":3.0,"metrics":{"bbox_ap":0.25,"bbox_ap_small":-1},"per_class":{"circle":0.7}}"#;
        let Some(Line::Eval(e)) = parse_line(line) else { panic!() };
        assert_eq!((e.metrics["bbox_ap"], e.per_class["circle"]), (0.25, 0.7));
    }

    #[test]
    fn what_the_training_loop_writes_is_read() {
        use crate::run::event::{Event, Train};
        let wild = Train {
            stage: "a".into(),
            stage_index: 1,
            step: 3,
            global_step: 9,
            epoch: 0.5,
            lr: f64::NAN,
            losses: BTreeMap::from([("loss".into(), f64::INFINITY)]),
            grad_norm: 2.0,
            images_per_s: 3.0,
            data_wait: 0.1,
            time_s: 4.0,
            memory_bytes: 5,
            skipped_steps: 0,
        };
        let text = serde_json::to_string(&Event::Train(wild)).unwrap();
        let Some(Line::Train(t)) = parse_line(&text) else { panic!("{text}") };
        assert!(t.lr.is_nan() && t.losses["loss"].is_nan());
        assert_eq!((t.stage_index, t.global_step, t.time_s, t.memory_bytes), (1, 9, 4.0, 5));
    }

    #[test]
    fn bare_nan_is_read() {
        let line = r#"{"event":"train","stage":"a NaN \" NaN","lr":NaN,"grad_norm":-Infinity,"losses":{"loss":"NaN"}}"#;
        let Some(Line::Train(t)) = parse_line(line) else { panic!() };
        assert!(t.lr.is_nan() && t.grad_norm.is_nan() && t.losses["loss"].is_nan());
        assert_eq!(t.stage, "a NaN \" NaN");
    }

    #[test]
    fn cut_off_and_unknown_lines_are_passed_over() {
        let log = RunLog::parse(concat!(
            "{\"event\":\"start\",\"seed\":3}\n\n{\"event\":\"weather\",\"rain\":true}\nnonsense\n",
            "{\"event\":\"train\",\"step\":1,\"global_step\":1}\n{\"event\":\"train\",\"st",
        ));
        assert_eq!((log.start.unwrap().seed, log.train.len(), log.skipped), (3, 1, 2));
        assert_eq!(RunLog::parse(""), RunLog::default());
    }

    #[test]
    fn steps_done_again_after_a_resumption_replace_the_first_try() {
        let train = |g| format!("{{\"event\":\"train\",\"global_step\":{g},\"time_s\":{g}}}\n");
        let eval = |g, v| format!("{{\"event\":\"eval\",\"global_step\":{g},\"metrics\":{{\"bbox_ap\":{v}}}}}\n");
        let text = [train(1), train(2), eval(2, 0.1), train(3), eval(3, 0.2)].concat()
            + "{\"event\":\"end\",\"reason\":\"stopped\"}\n{\"event\":\"start\"}\n"
            + &[train(2), eval(2, 0.3)].concat();
        let log = RunLog::parse(&text);
        assert_eq!(log.train.iter().map(|t| t.global_step).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(log.evals.len(), 1);
        assert_eq!(log.evals[0].metrics["bbox_ap"], 0.3);
        assert!(log.end.is_none());
    }

    #[test]
    fn epochs_and_times_run_through_the_stages() {
        let log = RunLog::parse(concat!(
            "{\"event\":\"stage\",\"stage\":\"a\",\"stage_index\":0}\n",
            "{\"event\":\"train\",\"stage\":\"a\",\"stage_index\":0,\"global_step\":1,\"epoch\":3,\"time_s\":30}\n",
            "{\"event\":\"train\",\"stage\":\"b\",\"stage_index\":1,\"global_step\":2,\"epoch\":1,\"time_s\":50}\n",
            "{\"event\":\"eval\",\"stage\":\"b\",\"stage_index\":1,\"global_step\":2,\"epoch\":1,\"time_s\":52,",
            "\"metrics\":{\"bbox_ap\":0.5}}\n",
        ));
        assert_eq!(log.epochs_before(), [0.0, 3.0]);
        assert_eq!(log.stage_names(), ["a", "b"]);
        assert_eq!(log.stage_times(), [0.0, 30.0]);
        let test = "{\"event\":\"eval\",\"split\":\"test\",\"metrics\":{\"bbox_ap\":0.5}}\n";
        assert!(RunLog::parse(test).evals.is_empty());
        assert_eq!(log.total_time(), 52.0);
        assert_eq!(log.metric_over_epochs("bbox_ap"), [(4.0, 0.5)]);
        assert_eq!(log.metric_over_time("bbox_ap"), [(52.0, 0.5)]);
        assert!(log.metric_over_time("none").is_empty());
        let wild = RunLog::parse("{\"event\":\"train\",\"stage_index\":1000000000000}\n");
        assert!(wild.stage_names().len() <= 64 && wild.epochs_before().len() <= 64);
    }
}
