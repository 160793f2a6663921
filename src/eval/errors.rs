//! Error analysis: TIDE's kinds of errors with the AP that each costs, and the confusion of classes. hotcoco computes
//! both; this file gives them names, tables and JSON. Main types: [`TideTable`], [`Confusion`].

use std::fmt;

use hotcoco::COCOeval;
use serde_json::{Value, json};

use super::metrics::{Metrics, Overlap};
use crate::error::{Error, Result};
use crate::format::counted;

/// An error of hotcoco as one of ours.
pub(super) fn hotcoco_error(e: hotcoco::error::Error) -> Error {
    Error::value("evaluate", e.to_string())
}

/// Which error analyses are made in addition to the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Look {
    /// Whether TIDE's errors are computed.
    pub tide: bool,
    /// If set, the confusion of classes is computed, from detections with at least this score.
    pub confusion: Option<f64>,
}

/// The result of an evaluation.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The metrics.
    pub metrics: Metrics,
    /// TIDE's errors, if [`Look::tide`] asked for them.
    pub tide: Option<TideTable>,
    /// The confusion of classes, if [`Look::confusion`] asked for it.
    pub confusion: Option<Confusion>,
}

/// Smallest IoU at which a detection matches an object.
const HIT_IOU: f64 = 0.5;
/// IoU below which a detection and an object are unrelated.
const BACKGROUND_IOU: f64 = 0.1;

/// Errors by kind (Bolya et al. 2020, "TIDE"), at IoU 0.5.
#[derive(Clone, Debug, PartialEq)]
pub struct TideTable {
    /// Whether the errors are those of boxes or of masks.
    pub overlap: Overlap,
    /// AP at IoU 0.5 of the detections.
    pub ap50: f64,
    /// For each kind: name, rise of AP if its errors were fixed, number of errors (none for the two sums).
    pub kinds: Vec<(&'static str, f64, Option<u64>)>,
}

impl TideTable {
    /// hotcoco's key and our name of each kind.
    const KINDS: [(&str, &str); 8] = [
        ("Cls", "classification"),
        ("Loc", "localisation"),
        ("Both", "both"),
        ("Dupe", "duplicate"),
        ("Bkg", "background"),
        ("Miss", "missed"),
        ("FP", "false_positives"),
        ("FN", "false_negatives"),
    ];

    pub(super) fn new(eval: &COCOeval, overlap: Overlap) -> Result<TideTable> {
        let errors = eval.tide_errors(HIT_IOU, BACKGROUND_IOU).map_err(hotcoco_error)?;
        let kind = |&(key, name): &(&str, &'static str)| {
            let delta = errors.delta_ap.get(key).copied().unwrap_or(0.0);
            (name, delta, errors.counts.get(key).copied())
        };
        Ok(TideTable { overlap, ap50: errors.ap_base, kinds: Self::KINDS.iter().map(kind).collect() })
    }

    /// The table as JSON: `{"ap50": .., "missed": {"ap": .., "count": ..}, ..}`.
    pub fn json(&self) -> Value {
        let mut out = json!({ "ap50": self.ap50 });
        for (name, ap, count) in &self.kinds {
            out[*name] = count.map_or(json!({ "ap": ap }), |count| json!({ "ap": ap, "count": count }));
        }
        out
    }
}

impl fmt::Display for TideTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.overlap {
            Overlap::Boxes => "boxes",
            Overlap::Masks => "masks",
        };
        write!(
            f,
            " errors of {of} (TIDE, IoU 0.50; AP50 {:.3})\n {:32}  {:>7}  {:>7}",
            self.ap50, "", "costs", "count"
        )?;
        for (name, ap, count) in &self.kinds {
            let text = match *name {
                "classification" => "classification: another class",
                "localisation" => "localisation: IoU 0.1 to 0.5",
                "both" => "both of these",
                "duplicate" => "duplicate: found twice",
                "background" => "background: nothing there",
                "missed" => "missed: not found",
                "false_positives" => "all that is found wrongly",
                _ => "all that is not found",
            };
            let count = count.map_or(String::new(), |n| n.to_string());
            write!(f, "\n {text:32}  {ap:7.3}  {count:>7}")?;
        }
        Ok(())
    }
}

/// How often objects of each class were found as each class. Detections are matched to objects at IoU 0.5 or more,
/// whatever the classes, highest score first. Crowd regions are not objects here: a detection on one counts as found
/// where nothing is.
#[derive(Clone, Debug, PartialEq)]
pub struct Confusion {
    /// Smallest score of the detections that count.
    pub score: f64,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// `[classes + 1][classes + 1]`: row by true class (last: nothing is there), column by found class (last: missed).
    pub counts: Vec<Vec<u64>>,
}

/// A matrix wider than this many characters is shown as a list.
const TABLE_WIDTH: usize = 110;
/// Largest number of confusions in a list.
const LISTED: usize = 20;

impl Confusion {
    pub(super) fn new(eval: &COCOeval, score: f64) -> Confusion {
        let m = eval.confusion_matrix(HIT_IOU, None, Some(score));
        let side = m.num_cats + 1;
        Confusion { score, classes: m.cat_names, counts: m.matrix.chunks(side).map(<[u64]>::to_vec).collect() }
    }

    /// Pairs of different classes that were confused, as count, true class, found class; largest count first.
    pub fn largest(&self) -> Vec<(u64, usize, usize)> {
        let k = self.classes.len();
        let pairs = (0..k).flat_map(|t| (0..k).map(move |d| (t, d))).filter(|(t, d)| t != d);
        let mut all: Vec<_> = pairs.map(|(t, d)| (self.counts[t][d], t, d)).filter(|p| p.0 > 0).collect();
        all.sort_by_key(|p| std::cmp::Reverse(p.0)); // stable: in the order of the classes
        all
    }

    /// The whole matrix as JSON.
    pub fn json(&self) -> Value {
        json!({
            "iou": HIT_IOU, "score": self.score, "classes": self.classes, "rows": "true class; last: nothing is there",
            "columns": "found class; last: not found", "counts": self.counts,
        })
    }

    /// Writes the whole matrix.
    fn table(&self, f: &mut fmt::Formatter<'_>, width: usize, first: usize) -> fmt::Result {
        let found = self.classes.iter().map(String::as_str).chain(["missed"]);
        write!(f, "\n {:first$}", "true \\ found as")?;
        for name in found {
            write!(f, "  {name:>width$}")?;
        }
        let names = self.classes.iter().map(String::as_str).chain(["nothing there"]);
        for (name, (row, counts)) in names.zip(self.counts.iter().enumerate()) {
            write!(f, "\n {name:first$}")?;
            for (column, n) in counts.iter().enumerate() {
                match n {
                    // The corner for "nothing there and nothing found" is not counted.
                    _ if row.max(column) == self.classes.len() && row == column => {}
                    0 => write!(f, "  {:>width$}", "·")?,
                    n => write!(f, "  {n:>width$}")?,
                }
            }
        }
        Ok(())
    }

    /// Writes sums and the largest confusions.
    fn list(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (k, all) = (self.classes.len(), self.largest());
        let missed: u64 = self.counts.iter().take(k).map(|row| row[k]).sum();
        let objects: u64 = self.counts.iter().take(k).flatten().sum();
        let hits: u64 = (0..k).map(|i| self.counts[i][i]).sum();
        let confused: u64 = all.iter().map(|p| p.0).sum();
        let nothing: u64 = self.counts[k].iter().sum();
        write!(
            f,
            "\n of {} {hits} found, {confused} found as another class, {missed} missed; {nothing} found \
             where nothing is",
            counted(objects as usize, "object")
        )?;
        let name = |i: usize| self.classes[i].chars().count();
        let shown = &all[..all.len().min(LISTED)];
        let wide = shown.iter().flat_map(|&(_, t, d)| [name(t), name(d)]).max().unwrap_or(0).max(8);
        if !shown.is_empty() {
            write!(f, "\n {:wide$}  {:wide$}  {:>7}  of the class", "true", "found as", "count")?;
        }
        for &(n, t, d) in shown {
            let of: u64 = self.counts[t].iter().sum();
            let (truth, found, share) = (&self.classes[t], &self.classes[d], 100.0 * n as f64 / of.max(1) as f64);
            write!(f, "\n {truth:wide$}  {found:wide$}  {n:7}  {share:10.1} %")?;
        }
        if all.len() > LISTED {
            write!(f, "\n and {} more pairs of classes", all.len() - LISTED)?;
        }
        Ok(())
    }
}

impl fmt::Display for Confusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " confusion of boxes (IoU 0.50, score {} or more)", self.score)?;
        let most = self.counts.iter().flatten().max().map_or(1, |n| n.to_string().len());
        let names = self.classes.iter().map(|c| c.chars().count()).max().unwrap_or(0);
        let (width, first) = (names.max(most).max(6), names.max(15));
        if 1 + first + (2 + width) * (self.classes.len() + 1) <= TABLE_WIDTH {
            self.table(f, width, first)
        } else {
            self.list(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(k: usize) -> Confusion {
        let mut counts = vec![vec![0; k + 1]; k + 1];
        for (i, row) in counts.iter_mut().enumerate().take(k) {
            row[i] = 100;
            row[(i + 1) % k] = i as u64;
            row[k] = 2;
        }
        counts[k][0] = 7;
        Confusion { score: 0.3, classes: (0..k).map(|i| format!("class{i}")).collect(), counts }
    }

    #[test]
    fn few_classes_are_a_table_and_many_a_list() {
        let few = made(4).to_string();
        assert_eq!(few.lines().count(), 1 + 1 + 5, "{few}");
        assert!(few.contains("missed") && few.contains("nothing there"));
        let many = made(80).to_string();
        assert!(many.lines().count() <= 4 + LISTED && many.lines().all(|l| l.chars().count() <= TABLE_WIDTH), "{many}");
        assert!(many.contains("class79") && many.contains("160 missed; 7 found") && many.contains("59 more"), "{many}");
        assert_eq!(made(80).largest()[0], (79, 79, 0));
    }
}
