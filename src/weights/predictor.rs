//! The layers whose rows are classes, and the rows of some classes among them.
//!
//! Main type: [`Predictor`].

use crate::models::config::{Detector, ModelConfig};

/// Layout of the rows of a layer whose rows are classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Predictor {
    /// Consecutive rows of one class.
    each: usize,
    /// How often the list of all classes repeats: once for each anchor.
    groups: usize,
    /// A last row for the background.
    background: bool,
}

impl Predictor {
    /// The layout of a parameter's rows; `None` if they are not classes.
    pub(super) fn of(name: &str, cfg: &ModelConfig) -> Option<Predictor> {
        let has = |layer: &str| name.contains(layer);
        let (agnostic, two_stage) = (cfg.box_head.class_agnostic, cfg.detector != Detector::RetinaNet);
        if two_stage && has(".fc_cls.") {
            Some(Predictor { each: 1, groups: 1, background: true })
        } else if two_stage && has(".fc_reg.") && !agnostic {
            Some(Predictor { each: 4, groups: 1, background: false })
        } else if has(".conv_logits.") {
            Some(Predictor { each: 1, groups: 1, background: false })
        } else if has(".retina_cls.") {
            Some(Predictor { each: 1, groups: cfg.anchors().per_cell(), background: false })
        } else {
            None
        }
    }

    /// The number of rows for so many classes.
    pub(super) fn rows(self, classes: usize) -> usize {
        self.each * self.groups * classes + usize::from(self.background)
    }

    /// The number of classes that so many rows are for.
    pub(super) fn classes(self, rows: usize) -> usize {
        (rows - usize::from(self.background)) / (self.each * self.groups)
    }

    /// Copies the rows of the classes in `keep`, out of the rows of `of` classes.
    pub(super) fn pick(self, values: &[f32], of: usize, keep: &[usize]) -> Vec<f32> {
        let width = values.len() / self.rows(of).max(1);
        let groups = (0..self.groups).flat_map(|g| keep.iter().map(move |k| (g * of + k) * self.each));
        let mut rows: Vec<usize> = groups.flat_map(|r| r..r + self.each).collect();
        rows.extend(self.background.then_some(self.groups * of * self.each));
        rows.into_iter().flat_map(|r| &values[r * width..][..width]).copied().collect()
    }
}
