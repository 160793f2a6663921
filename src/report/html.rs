//! `report.html` of a run: one file that needs nothing else, made from what lies in the run directory: `recipe.toml`,
//! `log.jsonl`, `metrics.json` and `examples/`. What is missing is left out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::compare::{Group, Run, groups};
use super::pictures::{base64, read_examples};
use super::results::Results;
use super::sections;
use crate::error::Result;
use crate::format::counted;
use crate::output::write_public;

const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;color:#1d2330;background:#f4f5f7;margin:0}
main{max-width:1180px;margin:0 auto;padding:24px}
h1{font-size:26px;margin:0} h2{font-size:18px;margin:32px 0 8px}
.quiet{color:#5b6475} .warn{color:#9c2a00}
.tiles,.charts{display:flex;flex-wrap:wrap;align-items:flex-start;gap:14px;margin:14px 0}
.tile{background:#fff;border:1px solid #dde1e8;border-radius:8px;padding:10px 18px;min-width:96px}
.tile b{display:block;font-size:24px}
figure{background:#fff;border:1px solid #dde1e8;border-radius:8px;padding:8px;margin:0;max-width:100%;box-sizing:border-box}
figure svg,figure img{max-width:100%;height:auto;display:block}
figcaption{font-size:13px;color:#5b6475;padding:4px 8px}
.key{display:inline-block;margin-right:14px;white-space:nowrap}
.key i{display:inline-block;width:18px;height:3px;margin-right:5px;vertical-align:middle}
.wide{overflow-x:auto}
table{border-collapse:collapse;background:#fff;border:1px solid #dde1e8}
th,td{padding:4px 14px;text-align:right;border-bottom:1px solid #eceff3}
th:first-child,td:first-child{text-align:left} th{font-weight:600;background:#fafbfc}
pre{background:#fff;border:1px solid #dde1e8;border-radius:8px;padding:12px;overflow-x:auto;font-size:13px}
";

/// Writes `report.html` into a run directory. `compare` are other run directories whose curves are drawn beside; folders
/// that differ only by a seed at the end of their names are shown as mean and range.
///
/// Errors: `Data` if a directory is not there; `Io` if a log cannot be read or the report cannot be written. A run
/// without log, metrics or pictures gives a report without them.
pub fn write_report(run_dir: &Path, compare: &[PathBuf]) -> Result<()> {
    let groups = groups(run_dir, compare)?;
    let recipe = std::fs::read_to_string(run_dir.join("recipe.toml")).unwrap_or_default();
    let page = render(&groups, &recipe, &read_examples(run_dir))?;
    write_public(&run_dir.join("report.html"), page.as_bytes())
}

/// Text for HTML and for attributes in quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => {}
            c => out.push(c),
        }
    }
    out
}

/// The page: the first run of the first group is the one that it is about.
fn render(groups: &[Group], recipe: &str, examples: &[(Vec<u8>, String)]) -> Result<String> {
    let Some(run) = groups.first().and_then(|g| g.runs.first()) else { return Ok(String::new()) };
    let values: toml::Table = recipe.parse().unwrap_or_default();
    let named = values.get("name").and_then(toml::Value::as_str).filter(|n| !n.is_empty());
    let title = named.unwrap_or(&run.name);
    let mut body = String::new();
    head(&mut body, run, title);
    expectations(&mut body, run, &values);
    body += &sections::progress(&run.log)?;
    if groups.len() > 1 || groups[0].runs.len() > 1 {
        body += &sections::comparison(groups)?;
    }
    body += &sections::losses(&run.log)?;
    results(&mut body, &run.results);
    body += &sections::timing(&run.log);
    pictures(&mut body, examples);
    if !recipe.is_empty() {
        let _ = write!(
            body,
            "<h2>Recipe</h2><details><summary>Every number, resolved</summary><pre>{}</pre></details>",
            escape(recipe)
        );
    }
    if run.log.skipped > 0 {
        let _ = write!(
            body,
            "<p class=\"warn\">Left out, as not readable: {} of log.jsonl.</p>",
            counted(run.log.skipped, "line")
        );
    }
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{} · upres</title>\
         <style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n",
        escape(title)
    ))
}

fn head(body: &mut String, run: &Run, title: &str) {
    let _ = write!(body, "<h1>{}</h1>\n<p class=\"quiet\">", escape(title));
    let mut facts = vec![format!("run {}", escape(&run.name))];
    if let Some(s) = &run.log.start {
        facts.push(format!("upres {}", escape(&s.version)));
        facts.push(format!("seed {}", s.seed));
        facts.push(match s.threads {
            0 => escape(&s.device),
            n => format!("{}, {}", escape(&s.device), counted(n, "thread")),
        });
        if s.parameters > 0 {
            facts.push(format!("{:.2} million parameters", s.parameters as f64 / 1e6));
        }
    }
    let stages = run.log.stage_names();
    if !stages.is_empty() {
        facts.push(format!("stages: {}", escape(&stages.join(", "))));
    }
    facts.push(match &run.log.end {
        Some(e) if e.reason.is_empty() => "done".into(),
        Some(e) => escape(&e.reason),
        None => "not finished".into(),
    });
    let _ = writeln!(body, "{}</p>", facts.join(" · "));
    body.push_str("<div class=\"tiles\">");
    let mut tile = |name: &str, value: String| {
        let _ = write!(body, "<div class=\"tile\"><b>{value}</b>{name}</div>");
    };
    if let Some(r) = run.results.first() {
        let of = if r.split.is_empty() { String::new() } else { format!(" ({})", escape(&r.split)) };
        let masks = [("mask AP", "segm_ap"), ("mask AP50", "segm_ap50")];
        let masks = masks.iter().filter(|(_, key)| r.numbers.contains_key(*key));
        for (name, key) in [("AP", "bbox_ap"), ("AP50", "bbox_ap50"), ("AP75", "bbox_ap75")].iter().chain(masks) {
            tile(&format!("{name}{of}"), percent(r.get(key)));
        }
    }
    tile("training time", duration(run.log.total_time()));
    if let Some(t) = run.log.train.last() {
        tile("steps", t.global_step.to_string());
    }
    body.push_str("</div>\n");
}

/// What the recipe says that the run must reach, and what it reached.
fn expectations(body: &mut String, run: &Run, recipe: &toml::Table) {
    let Some(expect) = recipe.get("expect").and_then(toml::Value::as_table) else { return };
    let real = |v: &toml::Value| v.as_float().or_else(|| v.as_integer().map(|i| i as f64));
    let window = expect.get("window").and_then(real).unwrap_or(0.0);
    let split = expect.get("split").and_then(toml::Value::as_str).unwrap_or("val");
    let Some(results) = run.results.iter().find(|r| r.split == split) else { return };
    let mut rows = String::new();
    let names = [("bbox_ap", "AP"), ("bbox_ap50", "AP50"), ("segm_ap", "mask AP"), ("segm_ap50", "mask AP50")];
    for (key, name) in names {
        if let Some(want) = expect.get(key).and_then(real) {
            let got = 100.0 * results.get(key);
            let word = if got >= want - window { "reached" } else { "<span class=\"warn\">missed</span>" };
            let _ = write!(
                rows,
                "<tr><td>{name}</td><td>{want:.1} − {window:.1}</td><td>{got:.1}</td><td>{word}</td></tr>"
            );
        }
    }
    if !rows.is_empty() {
        let _ = writeln!(
            body,
            "<h2>What the recipe must reach</h2><table><tr><th></th><th>wanted</th><th>got</th><th></th></tr>{rows}</table>"
        );
    }
}

/// The COCO numbers, of boxes and of masks where there are, and the AP of each class.
fn results(body: &mut String, all: &[Results]) {
    const NAMES: [(&str, &str); 12] = [
        ("ap", "AP at IoU 0.50 to 0.95"),
        ("bbox_ap50", "AP at IoU 0.50"),
        ("bbox_ap75", "AP at IoU 0.75"),
        ("bbox_ap_small", "AP, area below 32²"),
        ("bbox_ap_medium", "AP, area 32² to 96²"),
        ("bbox_ap_large", "AP, area above 96²"),
        ("bbox_ar1", "AR, 1 detection an image"),
        ("bbox_ar10", "AR, 10 detections"),
        ("bbox_ar100", "AR, 100 detections"),
        ("bbox_ar_small", "AR, area below 32²"),
        ("bbox_ar_medium", "AR, area 32² to 96²"),
        ("bbox_ar_large", "AR, area above 96²"),
    ];
    for r in all {
        let of = if r.split.is_empty() { String::new() } else { format!(": {}", escape(&r.split)) };
        let has_masks = r.numbers.contains_key("segm_ap");
        // Heads, and the prefixes of the keys of each column.
        let (heads, kinds): (&str, &[&str]) = match has_masks {
            true => ("<th>boxes</th><th>masks</th>", &["bbox_", "segm_"]),
            false => ("<th></th>", &["bbox_"]),
        };
        let _ =
            write!(body, "<h2>Metrics{of}</h2><div class=\"charts\"><table><tr><th>COCO, per cent</th>{heads}</tr>");
        for (key, name) in NAMES {
            let cell = |kind: &&str| format!("<td>{}</td>", percent(r.get(&format!("{kind}{key}"))));
            let _ = write!(body, "<tr><td>{name}</td>{}</tr>", kinds.iter().map(cell).collect::<String>());
        }
        let is_named =
            |k: &str| kinds.iter().any(|p| k.strip_prefix(p).is_some_and(|k| NAMES.iter().any(|n| n.0 == k)));
        for (key, value) in r.numbers.iter().filter(|(k, _)| !is_named(k)) {
            let _ = write!(body, "<tr><td>{}</td><td>{}</td></tr>", escape(key), percent(*value));
        }
        body.push_str("</table>");
        classes(body, r);
        body.push_str("</div>\n");
    }
}

/// A table of the numbers of each class that are there.
fn classes(body: &mut String, r: &Results) {
    const COLUMNS: [(&str, &str); 10] = [
        ("ap", "AP"),
        ("ap50", "AP50"),
        ("ap_small", "small"),
        ("ap_medium", "medium"),
        ("ap_large", "large"),
        ("segm_ap", "mask AP"),
        ("segm_ap50", "mask AP50"),
        ("segm_ap_small", "small"),
        ("segm_ap_medium", "medium"),
        ("segm_ap_large", "large"),
    ];
    if r.per_class.is_empty() {
        return;
    }
    let is_there = |key: &str| ["ap", "ap50"].contains(&key) || r.per_class.values().any(|c| c.contains_key(key));
    let columns: Vec<_> = COLUMNS.iter().filter(|c| is_there(c.0)).collect();
    let heads: String = columns.iter().map(|c| format!("<th>{}</th>", c.1)).collect();
    let _ = write!(body, "<div class=\"wide\"><table><tr><th>class</th>{heads}</tr>");
    for (name, numbers) in &r.per_class {
        let cell = |c: &&(&str, &str)| format!("<td>{}</td>", percent(numbers.get(c.0).copied().unwrap_or(f64::NAN)));
        let _ = write!(body, "<tr><td>{}</td>{}</tr>", escape(name), columns.iter().map(cell).collect::<String>());
    }
    body.push_str("</table></div>");
}

fn pictures(body: &mut String, examples: &[(Vec<u8>, String)]) {
    if examples.is_empty() {
        return;
    }
    body.push_str("<h2>Detections</h2><div class=\"charts\">");
    for (png, caption) in examples {
        let (data, caption) = (base64(png), escape(caption));
        let _ = write!(
            body,
            "<figure><img alt=\"{caption}\" src=\"data:image/png;base64,{data}\"><figcaption>{caption}</figcaption></figure>"
        );
    }
    body.push_str("</div>\n");
}

/// A share as per cent; a dash if it is not known (NaN, or COCO's -1).
pub(super) fn percent(v: f64) -> String {
    if v.is_finite() && v >= 0.0 { format!("{:.1}", 100.0 * v) } else { "–".into() }
}

/// Seconds in words.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".into();
    }
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

/// Bytes in words; a dash for 0.
pub(super) fn bytes(n: u64) -> String {
    match n {
        0 => "–".into(),
        n if n < 1 << 20 => format!("{:.1} KiB", n as f64 / 1024.0),
        n if n < 1 << 30 => format!("{:.1} MiB", n as f64 / f64::from(1 << 20)),
        n => format!("{:.2} GiB", n as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<b a='x' c=\"&\">\u{1b}\n"), "&lt;b a=&#39;x&#39; c=&quot;&amp;&quot;&gt;\n");
        let run = Run { name: "<script>".into(), ..Run::default() };
        let page = render(&[Group { name: "g".into(), runs: vec![run] }], "name = \"</title><script>\"", &[]).unwrap();
        assert!(!page.contains("<script>") && page.contains("&lt;/title&gt;"));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!((percent(0.6123).as_str(), percent(-1.0).as_str(), percent(f64::NAN).as_str()), ("61.2", "–", "–"));
        assert_eq!(
            (duration(59.7).as_str(), duration(3725.0).as_str(), duration(f64::NAN).as_str()),
            ("1 min 00 s", "1 h 02 min", "–")
        );
        assert_eq!((bytes(0).as_str(), bytes(1536).as_str(), bytes(3 << 30).as_str()), ("–", "1.5 KiB", "3.00 GiB"));
    }
}
