//! Runs for comparison. Runs whose folder names differ only by a seed at the end form a group, which is shown as mean
//! and range.

use std::path::{Path, PathBuf};

use super::results::Results;
use crate::error::{Error, Result};
use crate::run::log_reader::RunLog;

/// The content of a run directory that the report needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Name of the folder.
    pub name: String,
    /// The log; empty if there is none.
    pub log: RunLog,
    /// The final metrics, by split.
    pub results: Vec<Results>,
}

impl Run {
    /// Reads a run directory. A missing log or metrics file counts as empty; a missing directory is an error.
    fn read(dir: &Path) -> Result<Run> {
        if !dir.is_dir() {
            return Err(Error::data(dir, "report: no such run directory; give the folder that holds log.jsonl"));
        }
        let log = match RunLog::read(&dir.join("log.jsonl")) {
            Ok(log) => log,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => RunLog::default(),
            Err(e) => return Err(e),
        };
        let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        let name = full.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned());
        Ok(Run { name, results: Results::of_run(dir, &log), log })
    }

    /// The best value of a metric, over the evaluations of the log and the final metrics, without the test split. NaN
    /// if there is none.
    pub fn best(&self, key: &str) -> f64 {
        let evals = self.log.evals.iter().filter_map(|e| e.metrics.get(key)).copied();
        let last = self.results.iter().filter(|r| r.split != "test").map(|r| r.get(key));
        evals.chain(last).fold(f64::NAN, f64::max)
    }
}

/// Checks run directories that a report will compare with its run.
///
/// Errors: `Data` if a directory does not exist or holds neither a log nor metrics.
pub fn check(dirs: &[PathBuf]) -> Result<()> {
    for dir in dirs {
        if !dir.is_dir() {
            return Err(Error::data(dir, "--compare: no such run directory"));
        }
        if !["log.jsonl", "metrics.json"].iter().any(|name| dir.join(name).is_file()) {
            return Err(Error::data(
                dir,
                "--compare: no run, as it has neither log.jsonl nor metrics.json: name the folder that holds them",
            ));
        }
    }
    Ok(())
}

/// Runs that differ only by the seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Folder name without the seed.
    pub name: String,
    /// The runs.
    pub runs: Vec<Run>,
}

/// Reads a run and those it is compared with, in groups by the order of their first runs. A directory that is given
/// twice counts once.
pub fn groups(run_dir: &Path, compare: &[PathBuf]) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut seen: Vec<PathBuf> = Vec::new();
    for dir in std::iter::once(run_dir).chain(compare.iter().map(PathBuf::as_path)) {
        let run = Run::read(dir)?;
        let full = dir.canonicalize().map_err(|e| Error::io(dir, e))?;
        if seen.contains(&full) {
            continue;
        }
        seen.push(full);
        let name = without_seed(&run.name).to_string();
        match groups.iter_mut().find(|g| g.name == name) {
            Some(g) => g.runs.push(run),
            None => groups.push(Group { name, runs: vec![run] }),
        }
    }
    Ok(groups)
}

/// Removes a seed from the end of a folder name: `-3`, `_s3`, `-seed3`, `.seed_3`.
fn without_seed(name: &str) -> &str {
    const BETWEEN: [char; 3] = ['-', '_', '.'];
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == name.len() {
        return name;
    }
    let word = |s: &str, w: &str| s.strip_suffix(w).and_then(|s| s.strip_suffix(BETWEEN)).map(str::len);
    let bare = stem.strip_suffix(BETWEEN);
    let cut = bare
        .and_then(|b| word(b, "seed"))
        .or_else(|| word(stem, "seed"))
        .or_else(|| word(stem, "s"))
        .or_else(|| bare.map(str::len))
        .filter(|&n| n > 0);
    cut.map_or(name, |n| &name[..n])
}

/// Least, mean and greatest value of several curves at one x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Position.
    pub x: f64,
    /// Least value.
    pub low: f64,
    /// Mean.
    pub mean: f64,
    /// Greatest value.
    pub high: f64,
}

/// Mean and range of curves, whose points are sorted by x, at `steps` evenly spaced positions between the last of their
/// first points and the first of their last points. Values between points are interpolated linearly. A single curve
/// keeps its points.
pub fn spread(curves: &[Vec<(f64, f64)>], steps: usize) -> Vec<Spread> {
    let curves: Vec<&Vec<(f64, f64)>> = curves.iter().filter(|c| !c.is_empty()).collect();
    if let [only] = curves[..] {
        return only.iter().map(|p| Spread { x: p.0, low: p.1, mean: p.1, high: p.1 }).collect();
    }
    let from = curves.iter().map(|c| c[0].0).fold(f64::MIN, f64::max);
    let to = curves.iter().map(|c| c[c.len() - 1].0).fold(f64::MAX, f64::min);
    if curves.is_empty() || from > to {
        return Vec::new();
    }
    let steps = steps.max(2);
    (0..steps)
        .map(|i| {
            let x = from + (to - from) * i as f64 / (steps - 1) as f64;
            let values: Vec<f64> = curves.iter().map(|c| at(c, x)).collect();
            Spread {
                x,
                low: values.iter().copied().fold(f64::MAX, f64::min),
                mean: values.iter().sum::<f64>() / values.len() as f64,
                high: values.iter().copied().fold(f64::MIN, f64::max),
            }
        })
        .collect()
}

/// The value of a curve at `x`. Before its first and after its last point it is constant.
fn at(curve: &[(f64, f64)], x: f64) -> f64 {
    let after = curve.partition_point(|p| p.0 <= x);
    match (after.checked_sub(1).map(|i| curve[i]), curve.get(after)) {
        (Some(a), Some(b)) => a.1 + (b.1 - a.1) * ((x - a.0) / (b.0 - a.0)),
        (Some(a), None) => a.1,
        (None, first) => first.map_or(f64::NAN, |b| b.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_taken_off_the_name() {
        for (name, want) in [
            ("two-1", "two"),
            ("two_seed3", "two"),
            ("two-seed-12", "two"),
            ("one_s2", "one"),
            ("shapes.4", "shapes"),
            ("r50", "r50"),
            ("classes2", "classes2"),
            ("-1", "-1"),
            ("run", "run"),
        ] {
            assert_eq!(without_seed(name), want, "{name}");
        }
    }

    #[test]
    fn spread_is_mean_and_range_where_all_are_known() {
        let a = vec![(0.0, 0.0), (10.0, 10.0)];
        let b = vec![(5.0, 1.0), (20.0, 1.0)];
        let s = spread(&[a.clone(), b, Vec::new()], 3);
        assert_eq!(s.iter().map(|p| p.x).collect::<Vec<_>>(), [5.0, 7.5, 10.0]);
        assert_eq!(s[1], Spread { x: 7.5, low: 1.0, mean: 4.25, high: 7.5 });
        assert_eq!(spread(std::slice::from_ref(&a), 9).len(), 2);
        assert!(spread(&[], 3).is_empty() && spread(&[a, vec![(30.0, 1.0)]], 3).is_empty());
    }

    #[test]
    fn runs_are_read_leniently_and_grouped() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, log: &str| {
            let d = dir.path().join(name);
            std::fs::create_dir(&d).unwrap();
            std::fs::write(d.join("log.jsonl"), log).unwrap();
            d
        };
        let eval = "{\"event\":\"eval\",\"time_s\":1,\"metrics\":{\"bbox_ap\":0.5}}\n{\"event\":\"tr";
        let (a, b, c) = (make("two-1", eval), make("two-2", ""), make("one-1", eval));
        std::fs::remove_file(b.join("log.jsonl")).unwrap();
        let g = groups(&a, &[c.clone(), b, a.clone()]).unwrap();
        assert_eq!(g.iter().map(|g| (g.name.as_str(), g.runs.len())).collect::<Vec<_>>(), [("two", 2), ("one", 1)]);
        assert!(g[0].runs[0].best("bbox_ap") == 0.5 && g[0].runs[1].best("bbox_ap").is_nan());
        let e = groups(&dir.path().join("none"), &[]).unwrap_err().to_string();
        assert!(e.contains("no such run directory"), "{e}");
    }
}
