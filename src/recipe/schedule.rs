//! The learning rate of every step, as a pure function of the step: a resumed run needs no state for it. Main type:
//! [`Schedule`].

use super::{ScheduleConfig, ScheduleKind, StageConfig};

/// The learning rate of one stage over its steps.
///
/// Warm-up is that of mmcv 1: `regular · (1 - (1 - step/warmup_steps) · (1 - warmup_ratio))` for `step < warmup_steps`.
/// Steps are counted from 0, so step `warmup_steps` is the first with the full rate. `regular` is the rate of the
/// schedule without warm-up.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    config: ScheduleConfig,
    lr: f64,
    steps_per_epoch: u64,
    total_steps: u64,
}

impl Schedule {
    /// The schedule of `stage`, for its rate scaled to its batch ([`StageConfig::effective_lr`]). `steps_per_epoch`
    /// counts optimizer steps and is at least 1.
    pub fn new(stage: &StageConfig, steps_per_epoch: u64) -> Self {
        let steps_per_epoch = steps_per_epoch.max(1);
        let total_steps = match (stage.steps, stage.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => u64::from(epochs.unwrap_or(1)) * steps_per_epoch,
        };
        Schedule { config: stage.schedule.clone(), lr: stage.effective_lr(), steps_per_epoch, total_steps }
    }

    /// Number of steps of the stage.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Number of steps of one epoch, i.e. of one pass over the (repeated) training set.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Number of epochs completed before `step`.
    pub fn epoch(&self, step: u64) -> f64 {
        step as f64 / self.steps_per_epoch as f64
    }

    /// Learning rate of `step`, counted from 0 in this stage.
    pub fn lr(&self, step: u64) -> f64 {
        let ScheduleConfig { kind, warmup_steps, warmup_ratio, ref drop_epochs, drop_factor, final_ratio } =
            self.config;
        let regular = match kind {
            ScheduleKind::Constant => self.lr,
            ScheduleKind::Step => {
                let done = |drop: &&f64| step >= (*drop * self.steps_per_epoch as f64).round() as u64;
                self.lr * drop_factor.powi(drop_epochs.iter().filter(done).count() as i32)
            }
            ScheduleKind::Cosine => {
                let progress = (step as f64 / self.total_steps.max(1) as f64).min(1.0);
                let last = self.lr * final_ratio;
                last + (self.lr - last) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        };
        if step >= warmup_steps {
            return regular;
        }
        regular * (1.0 - (1.0 - step as f64 / warmup_steps as f64) * (1.0 - warmup_ratio))
    }

    /// Whether an evaluation is due after `done` steps of the stage, by `eval_every_epochs` (0: only at the end).
    pub fn eval_due(&self, done: u64, eval_every_epochs: f64) -> bool {
        if done >= self.total_steps {
            return true;
        }
        let every = eval_every_epochs * self.steps_per_epoch as f64;
        // Compares the numbers of evaluations due now and one step ago. This is exact even if `every` is not whole.
        every > 0.0 && done > 0 && (done as f64 / every).floor() > ((done - 1) as f64 / every).floor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::OptimizerConfig;

    fn schedule(lr: f64, config: ScheduleConfig, epochs: u32, steps_per_epoch: u64) -> Schedule {
        let stage = StageConfig {
            epochs: Some(epochs),
            optimizer: OptimizerConfig { lr, ..OptimizerConfig::default() },
            schedule: config,
            ..StageConfig::default()
        };
        Schedule::new(&stage, steps_per_epoch)
    }

    fn constant(lr: f64, warmup_steps: u64, warmup_ratio: f64) -> Schedule {
        schedule(lr, ScheduleConfig { warmup_steps, warmup_ratio, ..ScheduleConfig::default() }, 12, 7330)
    }

    /// Values of mmcv 1's formula for the paper's configurations (its authors' five schedules).
    #[test]
    fn warmup_is_mmcv_1() {
        let cases: &[(Schedule, &[(u64, f64)])] = &[
            (
                constant(0.04, 1000, 0.01),
                &[
                    (0, 0.00040000000000000034),
                    (1, 0.00043960000000000223),
                    (10, 0.0007960000000000011),
                    (500, 0.0202),
                    (999, 0.0399604),
                    (1000, 0.04),
                ],
            ),
            (
                constant(0.08, 500, 0.01),
                &[
                    (0, 0.0008000000000000007),
                    (1, 0.0009583999999999992),
                    (10, 0.0023840000000000037),
                    (250, 0.0404),
                    (499, 0.0798416),
                    (500, 0.08),
                ],
            ),
            (
                constant(0.02, 500, 0.001),
                &[
                    (0, 2.000000000000002e-05),
                    (1, 5.996000000000113e-05),
                    (10, 0.0004196),
                    (250, 0.01001),
                    (499, 0.01996004),
                    (500, 0.02),
                ],
            ),
            (constant(0.0004, 500, 0.01), &[(0, 4.000000000000004e-06), (250, 0.000202), (499, 0.000399208)]),
            (constant(0.0001, 500, 0.001), &[(0, 1.0000000000000009e-07), (250, 5.005e-05), (499, 9.98002e-05)]),
        ];
        for (schedule, values) in cases {
            for &(step, want) in *values {
                let got = schedule.lr(step);
                assert!((got - want).abs() <= 1e-15 * want.max(1e-3), "step {step}: got {got}, want {want}");
            }
        }
    }

    #[test]
    fn step_drops_at_the_start_of_an_epoch() {
        let config = ScheduleConfig {
            kind: ScheduleKind::Step,
            warmup_steps: 500,
            drop_epochs: vec![8.0, 11.0],
            ..ScheduleConfig::default()
        };
        let s = schedule(0.02, config, 12, 7330);
        assert_eq!(s.total_steps(), 87_960);
        assert_eq!(s.lr(8 * 7330 - 1), 0.02);
        assert!((s.lr(8 * 7330) - 0.002).abs() < 1e-17);
        assert!((s.lr(11 * 7330 - 1) - 0.002).abs() < 1e-17);
        assert!((s.lr(11 * 7330) - 0.0002).abs() < 1e-18);
    }

    #[test]
    fn warmup_longer_than_the_first_drop_scales_the_dropped_rate() {
        let config = ScheduleConfig {
            kind: ScheduleKind::Step,
            warmup_steps: 10,
            warmup_ratio: 0.0,
            drop_epochs: vec![1.0],
            ..ScheduleConfig::default()
        };
        let s = schedule(1.0, config, 3, 5);
        assert!((s.lr(4) - 0.4).abs() < 1e-15);
        assert!((s.lr(5) - 0.05).abs() < 1e-15, "half warmed up, one drop");
    }

    #[test]
    fn cosine_ends_at_its_ratio() {
        let config = ScheduleConfig {
            kind: ScheduleKind::Cosine,
            warmup_steps: 0,
            final_ratio: 0.1,
            ..ScheduleConfig::default()
        };
        let s = schedule(1.0, config, 10, 10);
        assert_eq!(s.lr(0), 1.0);
        assert!((s.lr(50) - 0.55).abs() < 1e-12);
        assert!((s.lr(100) - 0.1).abs() < 1e-12);
        assert!((s.lr(1000) - 0.1).abs() < 1e-12, "stays there");
        assert!((0..100).all(|i| s.lr(i + 1) < s.lr(i)));
    }

    #[test]
    fn another_batch_scales_the_rate() {
        let optimizer = OptimizerConfig { lr: 0.02, lr_batch: 16, ..OptimizerConfig::default() };
        let mut stage = StageConfig { epochs: Some(1), images_per_step: 4, optimizer, ..StageConfig::default() };
        let want = "s: learning rate 0.02 is stated for steps of 16 images; scaled to 0.005 for steps of 4";
        stage.name = "s".to_string();
        assert_eq!(stage.lr_sentence().as_deref(), Some(want));
        assert_eq!(Schedule::new(&stage, 5).lr(500), 0.005, "0.02 for 16 images");
        stage.steps = Some(7);
        assert_eq!(Schedule::new(&stage, 5).total_steps(), 7, "steps win over epochs");
    }

    #[test]
    fn evaluations_fall_on_whole_and_broken_epochs() {
        let s = schedule(1.0, ScheduleConfig::default(), 2, 10);
        let due = |every| (1..=20).filter(|&done| s.eval_due(done, every)).collect::<Vec<_>>();
        assert_eq!(due(1.0), [10, 20]);
        assert_eq!(due(0.5), [5, 10, 15, 20]);
        assert_eq!(due(0.0), [20]);
        assert_eq!(due(0.75), [8, 15, 20]);
    }
}
