//! Charts as SVG, drawn by plotters: lines, bands, and marks where a stage begins. Main type: [`Chart`].

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::text::escape;
use crate::error::{Error, Result};
use crate::run::log_reader::finite;

/// Width and height of a chart in SVG units.
const SIZE: (u32, u32) = (560, 320);

/// Line colours with good contrast on white that most colour-blind people can tell apart (Wong 2011, darkened).
const COLOURS: [[u8; 3]; 8] = [
    [0, 90, 170],
    [213, 94, 0],
    [0, 140, 100],
    [185, 80, 150],
    [70, 160, 220],
    [150, 110, 0],
    [90, 90, 90],
    [190, 20, 40],
];

/// The colour of line `i`; the colours repeat.
pub fn line_colour(i: usize) -> [u8; 3] {
    COLOURS[i % COLOURS.len()]
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Text of the legend. Empty: no entry in the legend.
    pub label: String,
    /// Colour.
    pub colour: [u8; 3],
    /// Points by rising x. Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Draws a dot at each point, for lines with few points.
    pub dots: bool,
}

impl Series {
    /// The line with a dot at each point.
    pub fn with_dots(self) -> Series {
        Series { dots: true, ..self }
    }
}

/// An area between two lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Band {
    /// Colour; drawn nearly transparent.
    pub colour: [u8; 3],
    /// x, lower bound and upper bound.
    pub points: Vec<(f64, f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// Unit below the horizontal axis.
    pub x_label: String,
    /// Unit beside the vertical axis.
    pub y_label: String,
    /// Lines. Later ones are drawn over earlier ones.
    pub series: Vec<Series>,
    /// Areas, drawn under the lines.
    pub bands: Vec<Band>,
    /// Vertical dashed lines: x and label.
    pub marks: Vec<(f64, String)>,
    /// The horizontal axis begins at 0 even if there is no point.
    pub from_zero: bool,
    /// Range of the vertical axis; `None` fits it to the points. Points outside are drawn at its ends.
    pub y_range: Option<Range>,
}

impl Chart {
    /// The chart as an `<svg>` element; `None` if there is no finite point.
    pub fn svg(&self) -> Result<Option<String>> {
        let lines: Vec<(&Series, Vec<(f64, f64)>)> =
            self.series.iter().map(|s| (s, finite(s.points.iter().copied()))).collect();
        let edges = self.bands.iter().flat_map(|b| b.points.iter().flat_map(|p| [(p.0, p.1), (p.0, p.2)]));
        let all: Vec<(f64, f64)> = lines.iter().flat_map(|l| l.1.iter().copied()).chain(finite(edges)).collect();
        let Some((x_range, fitted)) = ranges(&all) else { return Ok(None) };
        let marks: Vec<&(f64, String)> = self.marks.iter().filter(|m| m.0.is_finite()).collect();
        let x1 = marks.iter().fold(x_range.1, |m, k| m.max(k.0));
        let first = if self.from_zero { x_range.0.min(0.0) } else { x_range.0 };
        let x_range = (marks.iter().fold(first, |m, k| m.min(k.0)), x1);
        let y_range = self.y_range.filter(|r| r.0 < r.1 && (r.1 - r.0).is_finite()).unwrap_or(fitted);
        let mut text = String::new();
        self.draw(&mut text, &lines, &marks, x_range, y_range)
            .map_err(|e| Error::value("report: chart", format!("{}: {e}", self.title)))?;
        let opened = format!("<svg role=\"img\" aria-label=\"{}\" ", escape(&self.title));
        Ok(Some(text.replacen("<svg ", &opened, 1)))
    }

    fn draw(
        &self,
        text: &mut String,
        lines: &[(&Series, Vec<(f64, f64)>)],
        marks: &[&(f64, String)],
        x: Range,
        y: Range,
    ) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
        let colour = |c: [u8; 3]| RGBColor(c[0], c[1], c[2]);
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .margin_right(16)
            .caption(&self.title, ("sans-serif", 15))
            .x_label_area_size(38)
            .y_label_area_size(56)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        chart
            .configure_mesh()
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .label_style(("sans-serif", 12))
            .x_label_formatter(&|v| tick(*v, x.1 - x.0))
            .y_label_formatter(&|v| tick(*v, y.1 - y.0))
            .draw()?;
        let hold = |v: f64| v.clamp(y.0, y.1);
        for band in &self.bands {
            chart.draw_series(std::iter::once(Polygon::new(outline(band, hold), colour(band.colour).mix(0.18))))?;
        }
        for (series, points) in lines {
            let held: Vec<(f64, f64)> = points.iter().map(|p| (p.0, hold(p.1))).collect();
            let c = colour(series.colour);
            if series.dots {
                chart.draw_series(held.iter().map(|&p| Circle::new(p, 3, c.filled())))?;
            }
            chart.draw_series(LineSeries::new(held, c.stroke_width(2)))?;
        }
        for (i, (at, words)) in marks.iter().enumerate() {
            chart.draw_series(DashedLineSeries::new([(*at, y.0), (*at, y.1)], 4, 4, BLACK.mix(0.55).into()))?;
            // Different heights, so that the labels of neighbours do not cover each other.
            let height = y.1 - (y.1 - y.0) * (0.01 + 0.05 * (i % 4) as f64);
            let is_near_the_end = *at > x.0 + 0.75 * (x.1 - x.0);
            let (side, shift) = if is_near_the_end { (HPos::Right, (-4, 0)) } else { (HPos::Left, (4, 0)) };
            let grey = BLACK.mix(0.7);
            let style = TextStyle::from(("sans-serif", 12)).pos(Pos::new(side, VPos::Top)).color(&grey);
            let label = EmptyElement::at((*at, height)) + Text::new(words.clone(), shift, style);
            chart.draw_series(std::iter::once(label))?;
        }
        root.present()?;
        Ok(())
    }
}

/// The corners of a band: its upper bound forwards, its lower bound backwards.
fn outline(band: &Band, hold: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    let known = band.points.iter().filter(|p| p.0.is_finite() && p.1.is_finite() && p.2.is_finite());
    let upper = known.clone().map(|p| (p.0, hold(p.2)));
    upper.chain(known.rev().map(|p| (p.0, hold(p.1)))).collect()
}

/// First and last value of an axis.
type Range = (f64, f64);

/// Ranges of x and y around points; `None` if there is no point.
fn ranges(points: &[(f64, f64)]) -> Option<(Range, Range)> {
    let fit = |pick: fn(&(f64, f64)) -> f64, margin: f64| {
        let lo = points.iter().map(pick).fold(f64::MAX, f64::min).max(-1e300);
        let hi = points.iter().map(pick).fold(f64::MIN, f64::max).min(1e300);
        let pad = if hi > lo { (hi - lo) * margin } else { hi.abs().max(1.0) * 0.1 };
        (lo - pad, hi + pad)
    };
    let one_place = points.iter().all(|p| Some(p.0) == points.first().map(|f| f.0));
    (!points.is_empty()).then(|| (fit(|p| p.0, if one_place { 0.1 } else { 0.0 }), fit(|p| p.1, 0.05)))
}

/// The text of a tick on an axis of some length, with no more digits than are needed to tell the ticks apart.
fn tick(v: f64, length: f64) -> String {
    let v = if v.abs() < length * 1e-9 { 0.0 } else { v };
    if v != 0.0 && !(1e-4..1e6).contains(&v.abs()) {
        return format!("{v:.1e}");
    }
    let digits = (0..=6).find(|&d| 10f64.powi(-d) <= length / 12.0).unwrap_or(6);
    format!("{v:.0$}", digits as usize)
}

/// Centred moving average over about `share` of the points, to show the trend of noisy losses.
pub fn smooth(points: &[(f64, f64)], share: f64) -> Vec<(f64, f64)> {
    let reach = (points.len() as f64 * share / 2.0) as usize;
    let mut sums = vec![0.0];
    for p in points {
        sums.push(sums[sums.len() - 1] + p.1);
    }
    let mean = |i: usize| {
        let r = reach.min(i).min(points.len() - 1 - i); // smaller at the ends, to stay centred
        (sums[i + r + 1] - sums[i - r]) / (2 * r + 1) as f64
    };
    points.iter().enumerate().map(|(i, p)| (p.0, mean(i))).collect()
}

/// At most about `most` evenly spaced points, including the last one.
pub fn thin(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(most.max(1)).max(1);
    let last = points.len().saturating_sub(1);
    points.iter().enumerate().filter(|(i, _)| i.is_multiple_of(step) || *i == last).map(|(_, p)| *p).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Series {
        Series { label: "a".into(), colour: [1, 2, 3], points: points.to_vec(), dots: true }
    }

    #[test]
    fn a_chart_has_its_line_title_and_marks() {
        let chart = Chart {
            title: "loss <of> \"x\"".into(),
            x_label: "step".into(),
            series: vec![line(&[(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.5)])],
            bands: vec![Band { colour: [9, 9, 9], points: vec![(0.0, 0.5, 1.5), (3.0, 1.0, 2.0)] }],
            marks: vec![(2.0, "fine & tune".into()), (f64::NAN, "lost".into())],
            ..Chart::default()
        };
        let svg = chart.svg().unwrap().unwrap();
        assert!(
            svg.starts_with("<svg role=\"img\" aria-label=\"loss &lt;of&gt;") && svg.trim_end().ends_with("</svg>")
        );
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("<polyline") && svg.contains("<polygon"));
        assert!(svg.contains("fine &amp; tune") && !svg.contains("lost") && !svg.contains("NaN"));
    }

    #[test]
    fn no_point_no_chart_and_wild_points_do_no_harm() {
        assert_eq!(Chart::default().svg().unwrap(), None);
        let of = |points: &[(f64, f64)]| Chart { series: vec![line(points)], ..Chart::default() }.svg().unwrap();
        assert_eq!(of(&[(f64::NAN, 1.0), (1.0, f64::INFINITY)]), None);
        for points in
            [&[(5.0, 5.0)][..], &[(0.0, 0.0), (0.0, 1.0)], &[(0.0, 1e300), (1.0, -1e300)], &[(1e12, 1.0), (2e12, 1.0)]]
        {
            assert!(of(points).unwrap().contains("<polyline"), "{points:?}");
        }
        let held =
            Chart { series: vec![line(&[(0.0, 0.5), (1.0, 50.0)])], y_range: Some((0.0, 1.0)), ..Chart::default() };
        assert!(held.svg().unwrap().is_some());
        let silly = Chart { y_range: Some((1.0, f64::NAN)), ..held };
        assert!(silly.svg().unwrap().is_some());
        let late = Chart { series: vec![line(&[(50.0, 0.5), (60.0, 0.6)])], from_zero: true, ..Chart::default() };
        assert!(late.svg().unwrap().unwrap().contains("\n0\n"), "the axis begins at 0");
    }

    #[test]
    fn ticks_have_the_digits_they_need() {
        assert_eq!(tick(0.25, 1.0), "0.25");
        assert_eq!(tick(20.0, 100.0), "20");
        assert_eq!(tick(1.5, 15.0), "2");
        assert_eq!(tick(0.002, 0.01), "0.0020");
        assert_eq!(tick(1e-18, 1.0), "0.00");
        assert_eq!(tick(2.5e7, 1e8), "2.5e7");
    }

    #[test]
    fn smoothing_keeps_a_straight_line_and_thinning_keeps_the_ends() {
        let ramp: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), f64::from(2 * i))).collect();
        for (p, q) in smooth(&ramp, 0.2).iter().zip(&ramp) {
            assert!((p.1 - q.1).abs() < 1e-9);
        }
        let few = thin(&ramp, 10);
        assert!(few.len() <= 11 && few[0] == ramp[0] && few.last() == ramp.last());
        assert!(smooth(&[], 0.2).is_empty() && thin(&[], 0).is_empty());
    }
}
