//! The progress display of a run: a bar on a terminal, plain lines elsewhere, both on stderr. Main type: [`Progress`].

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Result;
use crate::format::counted;
use crate::format::{bytes, duration, three_digits};
use crate::output::tell;
use crate::recipe::{Recipe, Resize};
use crate::run::event::{Eval, Event, Observer, Stage, Train};

/// Least time between two plain lines of training steps.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows the events of a run to the user.
pub struct Progress {
    /// Number of images and estimated cost (in pixels) of a step, for each stage.
    stages: Vec<(f64, f64)>,
    now: Option<Stage>,
    eta: Eta,
    out: Out,
}

enum Out {
    Bar(ProgressBar),
    /// Time of the last line of training steps, and the destination.
    Plain(Option<Instant>, Box<dyn Write + Send>),
}

impl Progress {
    /// A display on stderr: a bar if it is a terminal, else plain lines.
    pub fn new(recipe: &Recipe) -> Progress {
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::no_length();
            bar.set_style(style());
            Progress::with(recipe, Out::Bar(bar))
        } else {
            Progress::plain(recipe, Box::new(std::io::stderr()))
        }
    }

    /// A display of plain lines, written to `out`.
    pub fn plain(recipe: &Recipe, out: Box<dyn Write + Send>) -> Progress {
        Progress::with(recipe, Out::Plain(None, out))
    }

    fn with(recipe: &Recipe, out: Out) -> Progress {
        let cost = |stage: &crate::recipe::StageConfig| {
            let pixels = match stage.resize {
                Resize::FitCrop { size, .. } => f64::from(size) * f64::from(size),
                Resize::KeepRatio { long, short, .. } => f64::from(long) * f64::from(short),
            };
            let images = stage.images_per_step as f64;
            (images, images * pixels)
        };
        Progress { stages: recipe.stages.iter().map(cost).collect(), now: None, eta: Eta::default(), out }
    }

    /// Prints one line, above the bar if there is one.
    fn say(&mut self, text: &str) {
        match &mut self.out {
            Out::Bar(bar) => bar.suspend(|| tell(text)),
            // Write errors are ignored: a closed pipe must not end the run.
            Out::Plain(_, out) => drop(writeln!(out, "{text}").and_then(|()| out.flush())),
        }
    }

    fn stage(&mut self, stage: &Stage) {
        let memory = bytes(stage.arena_bytes + stage.persistent_bytes);
        let shapes = stage.buckets.iter().map(|[h, w]| format!("{h}×{w}")).collect::<Vec<_>>().join(", ");
        let count =
            if stage.stages > 1 { format!(" ({} of {})", stage.stage_index + 1, stage.stages) } else { String::new() };
        self.say(&format!(
            "stage {}{count}: {}, {}, input {shapes} (height×width), memory {memory}",
            stage.stage,
            counted(stage.steps as usize, "step"),
            counted(stage.images, "image")
        ));
        if let Out::Bar(bar) = &self.out {
            bar.set_length(stage.steps);
            bar.set_position(0);
            bar.set_prefix(stage.stage.clone());
        }
        self.now = Some(stage.clone());
    }

    fn train(&mut self, train: &Train) {
        let Some(stage) = &self.now else { return };
        let (images, cost) = self.stages.get(train.stage_index).copied().unwrap_or((1.0, 1.0));
        self.eta.observe(images / train.images_per_s, cost);
        let later = self.stages.get(train.stage_index + 1..).unwrap_or_default();
        let later_cost = later.iter().map(|(_, cost)| cost).sum::<f64>() / later.len().max(1) as f64;
        let own_left = stage.steps.saturating_sub(train.step);
        let later_left = stage.total_steps.saturating_sub(train.global_step).saturating_sub(own_left);
        let left = self.eta.left(own_left as f64 * cost + later_left as f64 * later_cost);
        match &mut self.out {
            Out::Bar(bar) => {
                bar.set_position(train.step);
                bar.set_message(format!("{}\n{}", speed_text(train, left), losses_text(train)));
            }
            Out::Plain(last, _) => {
                let ends = train.step >= stage.steps;
                if !ends && last.is_some_and(|last| last.elapsed() < PLAIN_EVERY) {
                    return;
                }
                *last = Some(Instant::now());
                let (step, steps) = (train.step, stage.steps);
                let text =
                    format!("{} {step}/{steps}: {}; {}", train.stage, losses_text(train), speed_text(train, left));
                self.say(&text);
            }
        }
    }
}

impl Observer for Progress {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Start(start) => {
                let resumed = start.resumed_at.map_or(String::new(), |step| format!(", goes on after step {step}"));
                let text = format!(
                    "upres {}: {}, {}, {:.1} M parameters, {} with {}, seed {}{resumed}",
                    start.version,
                    start.recipe,
                    counted(start.classes.len(), "class"),
                    start.parameters as f64 / 1e6,
                    start.device,
                    counted(start.threads, "thread"),
                    start.seed
                );
                self.say(&text);
            }
            Event::Stage(stage) => self.stage(stage),
            Event::Train(train) => self.train(train),
            Event::Eval(eval) => self.say(&eval_text(eval)),
            Event::Checkpoint(_) => {}
            Event::End(end) => {
                if let Out::Bar(bar) = &self.out {
                    bar.finish_and_clear();
                }
                let text = format!(
                    "{} after {} in {}; {:.1} % of the time waited for data",
                    end.reason,
                    counted(end.global_step as usize, "step"),
                    duration(end.time_s),
                    end.data_wait * 100.0
                );
                self.say(&text);
            }
        }
        Ok(())
    }

    fn note(&mut self, line: &str) {
        self.say(line);
    }
}

fn style() -> ProgressStyle {
    let template = "{prefix:.bold} {bar:30.cyan/black.bright} {pos}/{len} {msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━━─")
}

/// Estimates the time left from measured seconds per unit of cost.
#[derive(Debug, Default)]
struct Eta {
    seconds_per_cost: Option<f64>,
}

impl Eta {
    /// Weight of the newest measurement in the running mean.
    const NEWEST: f64 = 0.1;

    fn observe(&mut self, seconds_per_step: f64, cost: f64) {
        let new = seconds_per_step / cost;
        if new.is_finite() && new > 0.0 {
            let old = self.seconds_per_cost.unwrap_or(new);
            self.seconds_per_cost = Some(old + Self::NEWEST * (new - old));
        }
    }

    fn left(&self, cost: f64) -> Option<f64> {
        self.seconds_per_cost.map(|seconds| seconds * cost)
    }
}

/// `loss 1.234 (roi_box 0.300, rpn_cls 0.934)`.
fn losses_text(train: &Train) -> String {
    let total = train.losses.get("loss").copied().unwrap_or(f64::NAN);
    let parts = train.losses.iter().filter(|(name, _)| *name != "loss");
    let parts = parts.map(|(name, value)| format!("{name} {value:.3}")).collect::<Vec<_>>();
    format!("loss {total:.3} ({})", parts.join(", "))
}

/// `epoch 1.20, lr 0.01, 31.5 images/s, 2.3 GiB, 1h02m left`, with the share of time spent waiting for data if it is at
/// least 5 %.
fn speed_text(train: &Train, left: Option<f64>) -> String {
    let mut text = format!(
        "epoch {:.2}, lr {}, {:.1} images/s, {}",
        train.epoch,
        three_digits(train.lr),
        train.images_per_s,
        bytes(train.memory_bytes)
    );
    if train.data_wait >= 0.05 {
        let _ = write!(text, ", {:.0} % waiting for data", train.data_wait * 100.0);
    }
    if let Some(left) = left {
        let _ = write!(text, ", {} left", duration(left));
    }
    text
}

fn eval_text(eval: &Eval) -> String {
    let metric = |name: &str| eval.metrics.get(name).filter(|value| **value >= 0.0).map(|value| value * 100.0);
    let names = [
        ("bbox_ap", "AP"),
        ("bbox_ap50", "AP50"),
        ("bbox_ap75", "AP75"),
        ("segm_ap", "mask AP"),
        ("segm_ap50", "mask AP50"),
    ];
    let shown = names.iter().filter_map(|(key, name)| Some(format!("{name} {:.1}", metric(key)?))).collect::<Vec<_>>();
    let shown = if shown.is_empty() { "no ground truth".to_string() } else { shown.join(", ") };
    format!("{} epoch {:.2}, {}: {shown}  [{}]", eval.stage, eval.epoch, eval.split, duration(eval.time_s))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::run::event::End;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn train(step: u64, images_per_s: f64) -> Train {
        Train {
            stage: "pretrain".into(),
            stage_index: 0,
            step,
            global_step: step,
            epoch: step as f64 / 50.0,
            lr: 0.0123456,
            losses: BTreeMap::from([("loss".into(), 1.5), ("rpn_cls".into(), 1.0), ("roi_box".into(), 0.5)]),
            grad_norm: 1.0,
            images_per_s,
            data_wait: 0.25,
            time_s: 3.0,
            memory_bytes: 3 << 29,
            skipped_steps: 0,
        }
    }

    #[test]
    fn plain_lines_tell_the_run() {
        let recipe = Recipe::built_in(&[]).unwrap();
        let sink = Sink::default();
        let mut progress = Progress::plain(&recipe, Box::new(sink.clone()));
        let stage = Stage {
            stage: "pretrain".into(),
            stage_index: 0,
            stages: 2,
            steps: 100,
            steps_per_epoch: 50,
            total_steps: 100,
            images: 400,
            buckets: vec![[128, 128], [96, 160]],
            persistent_bytes: 1 << 20,
            arena_bytes: 1 << 20,
            global_step: 0,
        };
        let images = recipe.stages[0].images_per_step as f64;
        let metrics =
            BTreeMap::from([("bbox_ap".into(), 0.256), ("bbox_ap50".into(), 0.5), ("bbox_ap75".into(), -1.0)]);
        let eval = Eval {
            stage: "pretrain".into(),
            stage_index: 0,
            split: "val".into(),
            step: 100,
            global_step: 100,
            epoch: 2.0,
            time_s: 61.0,
            metrics,
            per_class: BTreeMap::new(),
        };
        let with_masks = {
            let masks = [("segm_ap".to_string(), 0.21), ("segm_ap50".to_string(), 0.432)];
            Eval {
                split: "test".into(),
                metrics: eval.metrics.clone().into_iter().chain(masks).collect(),
                ..eval.clone()
            }
        };
        let end = End { reason: "done".into(), global_step: 100, time_s: 3700.0, data_wait: 0.015 };
        let events = [
            Event::Stage(stage),
            Event::Train(train(10, images)),
            Event::Train(train(11, images)),
            Event::Train(train(100, images)),
            Event::Eval(eval),
            Event::Eval(with_masks),
            Event::End(end),
        ];
        events.iter().for_each(|event| progress.event(event).unwrap());
        progress.note("a note");
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let want = "stage pretrain (1 of 2): 100 steps, 400 images, input 128×128, 96×160 (height×width), memory 2.0 MiB\n\
            pretrain 10/100: loss 1.500 (roi_box 0.500, rpn_cls 1.000); \
            epoch 0.20, lr 0.0123, I images/s, 1.5 GiB, 25 % waiting for data, 1m30s left\n\
            pretrain 100/100: loss 1.500 (roi_box 0.500, rpn_cls 1.000); \
            epoch 2.00, lr 0.0123, I images/s, 1.5 GiB, 25 % waiting for data, 0s left\n\
            pretrain epoch 2.00, val: AP 25.6, AP50 50.0  [1m01s]\n\
            pretrain epoch 2.00, test: AP 25.6, AP50 50.0, mask AP 21.0, mask AP50 43.2  [1m01s]\n\
            done after 100 steps in 1h01m; 1.5 % of the time waited for data\n\
            a note\n";
        assert_eq!(
            text,
            want.replace(" I images", &format!(" {images:.1} images")),
            "one second a step; line 11 comes too soon"
        );
    }

    #[test]
    fn time_left_counts_later_stages_by_their_cost() {
        let mut eta = Eta::default();
        assert_eq!(eta.left(5.0), None);
        eta.observe(f64::INFINITY, 1.0);
        eta.observe(2.0, 4.0);
        assert_eq!(eta.left(10.0), Some(5.0));
        eta.observe(4.0, 4.0);
        assert!((eta.left(10.0).unwrap() - 5.5).abs() < 1e-12);
    }

    #[test]
    fn the_template_is_valid() {
        assert!(style().get_tick_str(0).len() < 10);
    }
}
