//! Sections of the report that are made of logs: accuracy, comparison of runs, losses, time and memory.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::compare::{Group, Run, spread};
use super::curves::{Band, Chart, Series, line_colour, smooth, thin};
use super::text::{UNKNOWN, bytes, duration, escape, percent};
use crate::error::Result;
use crate::run::log_reader::{RunLog, TrainLine, finite};

/// Maximum number of points of a line. More cannot be seen at the size of the charts.
const POINTS: usize = 400;
/// Places at which the curves of several runs are averaged.
const SPREAD_POINTS: usize = 60;

type Points = Vec<(f64, f64)>;

/// AP and AP50, of masks too if they were measured, over time and over epochs.
pub(super) fn progress(log: &RunLog) -> Result<String> {
    let (unit, word) = time_unit(log.total_time());
    let chart = |title: &str, x_label: &str, marks, curve: &dyn Fn(&str) -> Points| Chart {
        series: [("AP", "bbox_ap"), ("AP50", "bbox_ap50"), ("mask AP", "segm_ap"), ("mask AP50", "segm_ap50")]
            .iter()
            .enumerate()
            .map(|(i, (name, key))| line(name, i, curve(key)).with_dots())
            .collect(),
        marks,
        ..per_cent_chart(title, x_label)
    };
    let time = chart("AP over training time", word, stage_marks(log, &log.stage_times(), unit), &|key| {
        scaled(log.metric_over_time(key), unit, 100.0)
    });
    let epochs = chart("AP over epochs", "epochs, all stages", stage_marks(log, &log.epochs_before(), 1.0), &|key| {
        scaled(log.metric_over_epochs(key), 1.0, 100.0)
    });
    section("Accuracy", &[time, epochs])
}

/// Mean and range of each group of runs: charts over time and a table.
pub(super) fn comparison(groups: &[Group]) -> Result<String> {
    let charts = [
        ("AP over training time", "bbox_ap"),
        ("AP50 over training time", "bbox_ap50"),
        ("Mask AP over training time", "segm_ap"),
        ("Mask AP50 over training time", "segm_ap50"),
    ]
    .map(|(title, key)| comparison_chart(groups, title, key));
    Ok(section("Beside other runs", &charts)? + &comparison_table(groups))
}

/// A metric of each group over time. A group of several runs has a band from the least to the greatest value.
fn comparison_chart(groups: &[Group], title: &str, key: &str) -> Chart {
    let longest = groups.iter().flat_map(|g| &g.runs).map(|r| r.log.total_time()).fold(0.0, f64::max);
    let (unit, word) = time_unit(longest);
    let mut chart = per_cent_chart(title, word);
    for (i, g) in groups.iter().enumerate() {
        let label = match g.runs.len() {
            1 => g.runs[0].name.clone(),
            n => format!("{}, mean and range of {n}", g.name),
        };
        let curves: Vec<Points> = g.runs.iter().map(|r| scaled(r.log.metric_over_time(key), unit, 100.0)).collect();
        let s = spread(&curves, SPREAD_POINTS);
        let mean = line(&label, i, s.iter().map(|s| (s.x, s.mean)).collect());
        if curves.iter().filter(|c| !c.is_empty()).count() > 1 {
            let points = s.iter().map(|s| (s.x, s.low, s.high)).collect();
            chart.bands.push(Band { colour: line_colour(i), points });
            chart.series.push(mean);
        } else {
            chart.series.push(mean.with_dots());
        }
    }
    chart
}

/// The final numbers of each group. The columns of masks are shown if any run has them.
fn comparison_table(groups: &[Group]) -> String {
    let has_masks = groups.iter().flat_map(|g| &g.runs).any(|r| r.results.iter().any(|m| m.has_masks()));
    let heads = if has_masks { "<th>mask AP</th><th>mask AP50</th>" } else { "" };
    let mut rows = String::new();
    for g in groups {
        let each = |value: &dyn Fn(&Run) -> f64| -> Vec<f64> { g.runs.iter().map(value).collect() };
        let last = |key: &str| mean_and_range(&each(&|r| r.results.first().map_or(f64::NAN, |m| m.get(key))), percent);
        let masks = match has_masks {
            true => format!("<td>{}</td><td>{}</td>", last("segm_ap"), last("segm_ap50")),
            false => String::new(),
        };
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>{masks}<td>{}</td><td>{}</td></tr>",
            escape(&g.name),
            g.runs.len(),
            last("bbox_ap"),
            last("bbox_ap50"),
            mean_and_range(&each(&|r| r.best("bbox_ap")), percent),
            mean_and_range(&each(&|r| r.log.total_time()), duration),
        );
    }
    format!(
        "<div class=\"wide\"><table><tr><th>run</th><th>seeds</th><th>AP</th><th>AP50</th>{heads}<th>best AP</th>\
         <th>training time</th></tr>{rows}</table></div>\n"
    )
}

/// Losses, learning rate and gradient norm of each stage.
pub(super) fn losses(log: &RunLog) -> Result<String> {
    let mut out = String::new();
    for (index, name) in log.stage_names().iter().enumerate() {
        let lines: Vec<&TrainLine> = log.train.iter().filter(|t| t.stage_index == index).collect();
        let rate = over_steps(&lines, |t| t.lr);
        let norm = over_steps(&lines, |t| t.grad_norm);
        let charts = [
            total_loss_chart(&lines),
            each_loss_chart(&lines),
            step_chart("Learning rate", "", vec![line("", 1, thin(&rate, POINTS))]),
            step_chart("Norm of the gradient, smoothed", "", vec![line("", 3, trend(&norm))]),
        ];
        out += &section(&format!("Stage {}: {name}", index + 1), &charts)?;
    }
    Ok(out)
}

fn total_loss_chart(lines: &[&TrainLine]) -> Chart {
    let total = loss(lines, "loss");
    let mut pale = line("every logged step", 0, thin(&total, POINTS));
    pale.colour = pale.colour.map(|c| c / 3 + 170);
    let series = vec![pale, line("smoothed", 0, trend(&total))];
    Chart { y_range: loss_range(&total), ..step_chart("Total loss", "loss", series) }
}

fn each_loss_chart(lines: &[&TrainLine]) -> Chart {
    let keys: BTreeSet<&String> = lines.iter().flat_map(|t| t.losses.keys()).filter(|k| *k != "loss").collect();
    let parts: Vec<(&String, Points)> = keys.into_iter().map(|k| (k, loss(lines, k))).collect();
    let series = parts.iter().enumerate().map(|(i, (k, p))| line(k, i, trend(p))).collect();
    let y_range = parts.iter().filter_map(|(_, p)| loss_range(p)).reduce(|a, b| (0.0, a.1.max(b.1)));
    Chart { y_range, ..step_chart("Each loss, smoothed", "loss", series) }
}

/// Speed, waiting time and memory of each stage.
pub(super) fn timing(log: &RunLog) -> String {
    if log.train.is_empty() {
        return String::new();
    }
    let begins = log.stage_times();
    let mut rows = String::new();
    for (index, name) in log.stage_names().iter().enumerate() {
        let lines: Vec<&TrainLine> = log.train.iter().filter(|t| t.stage_index == index).collect();
        let Some(last) = lines.last() else { continue };
        let end = begins.get(index + 1).copied().filter(|t| t.is_finite()).unwrap_or_else(|| log.total_time());
        let stage = log.stages.iter().find(|s| s.stage_index == index);
        let planned = stage.map_or(0, |s| s.persistent_bytes.saturating_add(s.arena_bytes));
        let used = lines.iter().map(|t| t.memory_bytes).max().unwrap_or(0);
        let speed = median(lines.iter().map(|t| t.images_per_s));
        let wait = mean(lines.iter().map(|t| t.data_wait));
        let speed = if speed.is_finite() { format!("{speed:.1}") } else { UNKNOWN.into() };
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

/// A heading with its charts. Charts without points are left out; without any chart the section is empty.
fn section(title: &str, charts: &[Chart]) -> Result<String> {
    let mut figures = String::new();
    for chart in charts {
        figures += &figure(chart)?;
    }
    Ok(match figures.is_empty() {
        true => figures,
        false => format!("<h2>{}</h2><div class=\"charts\">{figures}</div>\n", escape(title)),
    })
}

/// A chart with its legend; empty if the chart has no point.
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

/// A chart of values from 0 to 100 % without lines.
fn per_cent_chart(title: &str, x_label: &str) -> Chart {
    Chart {
        title: title.into(),
        x_label: x_label.into(),
        y_label: "per cent".into(),
        from_zero: true,
        y_range: Some((0.0, 100.0)),
        ..Chart::default()
    }
}

/// A chart over the steps of a stage.
fn step_chart(title: &str, y_label: &str, series: Vec<Series>) -> Chart {
    let x_label = "steps of the stage".into();
    Chart { title: title.into(), x_label, y_label: y_label.into(), series, ..Chart::default() }
}

/// A line without dots, in the colour with the given number.
fn line(label: &str, colour: usize, points: Points) -> Series {
    Series { label: label.into(), colour: line_colour(colour), points, dots: false }
}

/// The factor from seconds to the unit of a time axis, and its label: minutes, or hours for long runs.
fn time_unit(total: f64) -> (f64, &'static str) {
    if total > 3.0 * 3600.0 { (1.0 / 3600.0, "hours") } else { (1.0 / 60.0, "minutes") }
}

/// Marks at the beginning of each stage except the first.
fn stage_marks(log: &RunLog, places: &[f64], unit: f64) -> Vec<(f64, String)> {
    log.stage_names().into_iter().zip(places).skip(1).map(|(name, p)| (p * unit, name)).collect()
}

fn scaled(points: Points, x: f64, y: f64) -> Points {
    points.into_iter().map(|p| (p.0 * x, p.1 * y)).collect()
}

/// A value of each line of the log over the steps of the stage.
fn over_steps(lines: &[&TrainLine], value: impl Fn(&TrainLine) -> f64) -> Points {
    finite(lines.iter().map(|t| (t.step as f64, value(t))))
}

fn loss(lines: &[&TrainLine], key: &str) -> Points {
    over_steps(lines, |t| t.losses.get(key).copied().unwrap_or(f64::NAN))
}

/// Smoothed points, thinned out for drawing.
fn trend(points: &Points) -> Points {
    thin(&smooth(points, 0.04), POINTS)
}

/// The range from 0 to above 98.5 % of the points: the first few steps of a fresh network must not flatten the rest.
/// `None` if a loss is negative.
fn loss_range(points: &Points) -> Option<(f64, f64)> {
    let mut values: Vec<f64> = points.iter().map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    let high = values.get((values.len().checked_sub(1)? as f64 * 0.985) as usize)?;
    (values[0] >= 0.0 && *high > 0.0).then_some((0.0, high * 1.1))
}

/// `61.2 (60.1 to 62.0)`, without the range if there is only one finite value.
fn mean_and_range(values: &[f64], show: impl Fn(f64) -> String) -> String {
    let known: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let mean = known.iter().sum::<f64>() / known.len() as f64; // NaN, shown as a dash, without values
    let (low, high) = known.iter().fold((f64::MAX, f64::MIN), |m, &v| (m.0.min(v), m.1.max(v)));
    if known.len() < 2 { show(mean) } else { format!("{} ({} to {})", show(mean), show(low), show(high)) }
}

/// The median of the finite positive values.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.filter(|v| v.is_finite() && *v > 0.0).collect();
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The mean of the finite values.
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
