//! Parts of the report that hold curves or are made of the log: progress, comparison, losses, timing.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::compare::{Group, Spread, spread};
use super::curves::{Band, Chart, Series, line_colour, smooth, thin};
use super::text::{bytes, duration, escape, percent};
use crate::error::Result;
use crate::run::log_reader::{RunLog, TrainLine, finite};

/// Points of a line at most: more do not show at this size.
const POINTS: usize = 400;

type Points = Vec<(f64, f64)>;

/// A chart with its legend; empty if it has no point.
fn figure(chart: &Chart) -> Result<String> {
    let Some(svg) = chart.svg()? else { return Ok(String::new()) };
    let mut keys = String::new();
    for s in chart.series.iter().filter(|s| !s.points.is_empty() && !s.label.is_empty()) {
        let [r, g, b] = s.colour;
        let label = escape(&s.label);
        let _ = write!(keys, "<span class=\"key\"><i style=\"background:rgb({r},{g},{b})\"></i>{label}</span>");
    }
    Ok(format!("<figure>{svg}<figcaption>{keys}</figcaption></figure>"))
}

fn section(title: &str, figures: &str) -> String {
    match figures.is_empty() {
        true => String::new(),
        false => format!("<h2>{}</h2><div class=\"charts\">{figures}</div>\n", escape(title)),
    }
}

fn series(label: &str, colour: usize, points: Points, dots: bool) -> Series {
    Series { label: label.into(), colour: line_colour(colour), points, dots }
}

/// Seconds as minutes, or as hours for long runs, with the axis label.
fn time_unit(total: f64) -> (f64, &'static str) {
    if total > 3.0 * 3600.0 { (1.0 / 3600.0, "hours") } else { (1.0 / 60.0, "minutes") }
}

/// Marks where each stage but the first begins.
fn stage_marks(log: &RunLog, places: &[f64], unit: f64) -> Vec<(f64, String)> {
    log.stage_names().into_iter().zip(places).skip(1).map(|(name, p)| (p * unit, name)).collect()
}

fn scaled(points: Points, x: f64, y: f64) -> Points {
    points.into_iter().map(|p| (p.0 * x, p.1 * y)).collect()
}

/// AP and AP50, of masks too where they were measured, over time and over epochs.
pub(super) fn progress(log: &RunLog) -> Result<String> {
    let (unit, word) = time_unit(log.total_time());
    let chart = |title: &str, x_label: &str, marks, curve: &dyn Fn(&str) -> Points| Chart {
        title: title.into(),
        x_label: x_label.into(),
        y_label: "per cent".into(),
        series: [("AP", "bbox_ap"), ("AP50", "bbox_ap50"), ("mask AP", "segm_ap"), ("mask AP50", "segm_ap50")]
            .iter()
            .enumerate()
            .map(|(i, (name, key))| series(name, i, curve(key), true))
            .collect(),
        marks,
        from_zero: true,
        y_range: Some((0.0, 100.0)),
        ..Chart::default()
    };
    let time = chart("AP over training time", word, stage_marks(log, &log.stage_times(), unit), &|key| {
        scaled(log.metric_over_time(key), unit, 100.0)
    });
    let epochs = chart("AP over epochs", "epochs, all stages", stage_marks(log, &log.epochs_before(), 1.0), &|key| {
        scaled(log.metric_over_epochs(key), 1.0, 100.0)
    });
    Ok(section("Accuracy", &(figure(&time)? + &figure(&epochs)?)))
}

/// Groups of runs beside each other: mean and range over time, and a table.
pub(super) fn comparison(groups: &[Group]) -> Result<String> {
    let runs = || groups.iter().flat_map(|g| &g.runs);
    let (unit, word) = time_unit(runs().map(|r| r.log.total_time()).fold(0.0, f64::max));
    let label = |g: &Group| match g.runs.len() {
        1 => g.runs[0].name.clone(),
        n => format!("{}, mean and range of {n}", g.name),
    };
    let mut figures = String::new();
    let titles = [
        ("AP over training time", "bbox_ap"),
        ("AP50 over training time", "bbox_ap50"),
        ("Mask AP over training time", "segm_ap"),
        ("Mask AP50 over training time", "segm_ap50"),
    ];
    for (title, key) in titles {
        let mut chart = Chart {
            title: title.into(),
            x_label: word.into(),
            y_label: "per cent".into(),
            from_zero: true,
            y_range: Some((0.0, 100.0)),
            ..Chart::default()
        };
        for (i, g) in groups.iter().enumerate() {
            let curves: Vec<Points> = g.runs.iter().map(|r| scaled(r.log.metric_over_time(key), unit, 100.0)).collect();
            let several = curves.iter().filter(|c| !c.is_empty()).count() > 1;
            let s: Vec<Spread> = spread(&curves, 60);
            if several {
                let points = s.iter().map(|s| (s.x, s.low, s.high)).collect();
                chart.bands.push(Band { colour: line_colour(i), points });
            }
            chart.series.push(series(&label(g), i, s.iter().map(|s| (s.x, s.mean)).collect(), !several));
        }
        figures += &figure(&chart)?;
    }
    let has_masks = runs().any(|r| r.results.iter().any(|m| m.numbers.contains_key("segm_ap")));
    let heads = if has_masks { "<th>mask AP</th><th>mask AP50</th>" } else { "" };
    let mut table = format!(
        "<div class=\"wide\"><table><tr><th>run</th><th>seeds</th><th>AP</th><th>AP50</th>{heads}<th>best AP</th>\
         <th>training time</th></tr>",
    );
    for g in groups {
        let of = |value: &dyn Fn(&super::compare::Run) -> f64| -> Vec<f64> { g.runs.iter().map(value).collect() };
        let last = |key: &'static str| of(&|r| r.results.first().map_or(f64::NAN, |m| m.get(key)));
        let _ = write!(
            table,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>{}<td>{}</td><td>{}</td></tr>",
            escape(&g.name),
            g.runs.len(),
            mean_and_range(&last("bbox_ap"), percent),
            mean_and_range(&last("bbox_ap50"), percent),
            masks(&["segm_ap", "segm_ap50"], has_masks, &|key| mean_and_range(&last(key), percent)),
            mean_and_range(&of(&|r| r.best("bbox_ap")), percent),
            mean_and_range(&of(&|r| r.log.total_time()), duration),
        );
    }
    Ok(section("Beside other runs", &figures) + &table + "</table></div>\n")
}

/// Cells of the columns of masks, if there are any.
fn masks(keys: &[&'static str], are_there: bool, text: &dyn Fn(&'static str) -> String) -> String {
    keys.iter().filter(|_| are_there).map(|key| format!("<td>{}</td>", text(key))).collect()
}

/// `61.2 (60.1 to 62.0)`, without the range for one value.
fn mean_and_range(values: &[f64], show: impl Fn(f64) -> String) -> String {
    let known: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let mean = known.iter().sum::<f64>() / known.len() as f64; // NaN, shown as a dash, if there is none
    let (low, high) = known.iter().fold((f64::MAX, f64::MIN), |m, &v| (m.0.min(v), m.1.max(v)));
    if known.len() < 2 { show(mean) } else { format!("{} ({} to {})", show(mean), show(low), show(high)) }
}

/// Losses and learning rate of each stage.
pub(super) fn losses(log: &RunLog) -> Result<String> {
    let mut out = String::new();
    for (index, name) in log.stage_names().iter().enumerate() {
        let lines: Vec<&TrainLine> = log.train.iter().filter(|t| t.stage_index == index).collect();
        let over = |value: &dyn Fn(&TrainLine) -> f64| finite(lines.iter().map(|t| (t.step as f64, value(t))));
        let loss = |key: &str| over(&|t| t.losses.get(key).copied().unwrap_or(f64::NAN));
        let trend = |points: &Points| thin(&smooth(points, 0.04), POINTS);
        let chart = |title: &str, y_label: &str, series: Vec<Series>| {
            let x_label = "steps of the stage".into();
            Chart { title: title.into(), x_label, y_label: y_label.into(), series, ..Chart::default() }
        };

        let total = loss("loss");
        let mut pale = series("every logged step", 0, thin(&total, POINTS), false);
        pale.colour = pale.colour.map(|c| c / 3 + 170);
        let mut sum = chart("Total loss", "loss", vec![pale, series("smoothed", 0, trend(&total), false)]);
        sum.y_range = loss_range(&total);
        let keys: BTreeSet<&String> = lines.iter().flat_map(|t| t.losses.keys()).filter(|k| *k != "loss").collect();
        let parts: Vec<(&String, Points)> = keys.into_iter().map(|k| (k, loss(k))).collect();
        let drawn = parts.iter().enumerate().map(|(i, (k, p))| series(k, i, trend(p), false)).collect();
        let mut each = chart("Each loss, smoothed", "loss", drawn);
        each.y_range = parts.iter().filter_map(|(_, p)| loss_range(p)).reduce(|a, b| (0.0, a.1.max(b.1)));
        let rate = chart("Learning rate", "", vec![series("", 1, thin(&over(&|t| t.lr), POINTS), false)]);
        let norm = over(&|t| t.grad_norm);
        let norms = chart("Norm of the gradient, smoothed", "", vec![series("", 3, trend(&norm), false)]);
        let mut figures = String::new();
        for chart in [sum, each, rate, norms] {
            figures += &figure(&chart)?;
        }
        out += &section(&format!("Stage {}: {name}", index + 1), &figures);
    }
    Ok(out)
}

/// From 0 to above nearly all points: the first few steps of a fresh network must not flatten the rest.
fn loss_range(points: &Points) -> Option<(f64, f64)> {
    let mut values: Vec<f64> = points.iter().map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    let high = values.get((values.len().checked_sub(1)? as f64 * 0.985) as usize)?;
    (values[0] >= 0.0 && *high > 0.0).then_some((0.0, high * 1.1))
}

/// Speed, waiting and memory of each stage.
pub(super) fn timing(log: &RunLog) -> String {
    let names = log.stage_names();
    if log.train.is_empty() {
        return String::new();
    }
    let mut rows = String::new();
    let begins = log.stage_times();
    for (index, name) in names.iter().enumerate() {
        let lines: Vec<&TrainLine> = log.train.iter().filter(|t| t.stage_index == index).collect();
        let Some(last) = lines.last() else { continue };
        let end = begins.get(index + 1).copied().filter(|t| t.is_finite()).unwrap_or_else(|| log.total_time());
        let stage = log.stages.iter().find(|s| s.stage_index == index);
        let planned = stage.map_or(0, |s| s.persistent_bytes.saturating_add(s.arena_bytes));
        let used = lines.iter().map(|t| t.memory_bytes).max().unwrap_or(0);
        let speed = median(lines.iter().map(|t| t.images_per_s));
        let wait = mean(lines.iter().map(|t| t.data_wait));
        let speed = if speed.is_finite() { format!("{speed:.1}") } else { "–".into() };
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{speed}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(name),
            last.step,
            last.epoch,
            duration(end - begins[index]),
            percent(wait),
            bytes(planned),
            bytes(used)
        );
    }
    format!(
        "<h2>Time and memory</h2><div class=\"wide\"><table><tr><th>stage</th><th>steps</th><th>epochs</th>\
         <th>time, evaluation included</th><th>images/s, median</th><th>waiting for data, %</th>\
         <th>memory planned</th><th>memory in use</th></tr>{rows}</table></div>\n"
    )
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.filter(|v| v.is_finite() && *v > 0.0).collect();
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.filter(|v| v.is_finite()).fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
    sum / n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_pass_over_the_first_steps() {
        let mut points: Points = (0..200).map(|i| (f64::from(i), 1.0)).collect();
        points[0].1 = 500.0;
        assert_eq!(loss_range(&points), Some((0.0, 1.1)));
        assert_eq!(loss_range(&vec![]), None);
        assert_eq!(loss_range(&vec![(0.0, -1.0), (1.0, 2.0)]), None);
    }

    #[test]
    fn mean_and_range_of_what_is_known() {
        assert_eq!(mean_and_range(&[0.5, 0.7, f64::NAN], percent), "60.0 (50.0 to 70.0)");
        assert_eq!(mean_and_range(&[0.5], percent), "50.0");
        assert_eq!(mean_and_range(&[f64::NAN], percent), "–");
        assert!(median([f64::NAN].into_iter()).is_nan() && median([3.0, 1.0, 2.0].into_iter()) == 2.0);
    }

    #[test]
    fn empty_logs_make_empty_sections() {
        let log = RunLog::default();
        assert_eq!(progress(&log).unwrap() + &losses(&log).unwrap() + &timing(&log), "");
    }
}
