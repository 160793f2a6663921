//! The page `report.html` of a run: one file that loads nothing else. It is built from the run directory:
//! `recipe.toml`, `log.jsonl`, `metrics.json` and `examples/`. Missing files are left out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::compare::{Group, Run, groups};
use super::pictures::{base64, read_examples};
use super::text::{duration, escape, percent};
use super::{sections, tables};
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
figure{background:#fff;border:1px solid #dde1e8;border-radius:8px;padding:8px;margin:0;max-width:100%;
box-sizing:border-box}
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

/// Writes `report.html` into a run directory. `compare` are other run directories, whose curves are drawn beside those
/// of the run. Directories whose names differ only by a seed at the end are shown together, as mean and range.
///
/// Errors: `Data` if a directory does not exist; `Io` if a log cannot be read; `Value` if the report cannot be written.
/// A run without log, metrics or pictures gives a report without them.
pub fn write_report(run_dir: &Path, compare: &[PathBuf]) -> Result<()> {
    let groups = groups(run_dir, compare)?;
    let recipe = std::fs::read_to_string(run_dir.join("recipe.toml")).unwrap_or_default();
    let page = page(&groups, &recipe, &read_examples(run_dir))?;
    write_public(&run_dir.join("report.html"), page.as_bytes())
}

/// The page. Its subject is the first run of the first group.
fn page(groups: &[Group], recipe: &str, examples: &[(Vec<u8>, String)]) -> Result<String> {
    let Some(run) = groups.first().and_then(|g| g.runs.first()) else { return Ok(String::new()) };
    let values: toml::Table = recipe.parse().unwrap_or_default();
    let named = values.get("name").and_then(toml::Value::as_str).filter(|n| !n.is_empty());
    let title = named.unwrap_or(&run.name);
    let mut body = head(run, title);
    body += &tables::expectations(&run.results, &values);
    body += &sections::progress(&run.log)?;
    if groups.len() > 1 || groups[0].runs.len() > 1 {
        body += &sections::comparison(groups)?;
    }
    body += &sections::losses(&run.log)?;
    body.extend(run.results.iter().map(tables::metrics));
    body += &sections::timing(&run.log);
    body += &pictures(examples);
    body += &recipe_text(recipe);
    body += &unreadable_lines(run.log.skipped);
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{} · upres</title>\
         <style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n",
        escape(title)
    ))
}

/// Title, facts about the run, and its main numbers.
fn head(run: &Run, title: &str) -> String {
    let facts = facts(run).join(" · ");
    let tiles = tiles(run);
    format!("<h1>{}</h1>\n<p class=\"quiet\">{facts}</p>\n<div class=\"tiles\">{tiles}</div>\n", escape(title))
}

fn facts(run: &Run) -> Vec<String> {
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
    facts
}

fn tiles(run: &Run) -> String {
    let mut tiles = String::new();
    let mut tile = |name: &str, value: String| {
        let _ = write!(tiles, "<div class=\"tile\"><b>{value}</b>{name}</div>");
    };
    if let Some(r) = run.results.first() {
        let split = if r.split.is_empty() { String::new() } else { format!(" ({})", escape(&r.split)) };
        let boxes = [("AP", "bbox_ap"), ("AP50", "bbox_ap50"), ("AP75", "bbox_ap75")];
        let masks = [("mask AP", "segm_ap"), ("mask AP50", "segm_ap50")];
        let masks = masks.into_iter().filter(|(_, key)| r.numbers.contains_key(*key));
        for (name, key) in boxes.into_iter().chain(masks) {
            tile(&format!("{name}{split}"), percent(r.get(key)));
        }
    }
    tile("training time", duration(run.log.total_time()));
    if let Some(t) = run.log.train.last() {
        tile("steps", t.global_step.to_string());
    }
    tiles
}

fn pictures(examples: &[(Vec<u8>, String)]) -> String {
    if examples.is_empty() {
        return String::new();
    }
    let mut figures = String::new();
    for (png, caption) in examples {
        let (data, caption) = (base64(png), escape(caption));
        let _ = write!(
            figures,
            "<figure><img alt=\"{caption}\" src=\"data:image/png;base64,{data}\">\
             <figcaption>{caption}</figcaption></figure>"
        );
    }
    format!("<h2>Detections</h2><div class=\"charts\">{figures}</div>\n")
}

fn recipe_text(recipe: &str) -> String {
    if recipe.is_empty() {
        return String::new();
    }
    let text = escape(recipe);
    format!("<h2>Recipe</h2><details><summary>Every number, resolved</summary><pre>{text}</pre></details>")
}

/// A warning about lines of the log that could not be read.
fn unreadable_lines(count: usize) -> String {
    if count == 0 {
        return String::new();
    }
    format!("<p class=\"warn\">Left out, as not readable: {} of log.jsonl.</p>", counted(count, "line"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        let run = Run { name: "<script>".into(), ..Run::default() };
        let page = page(&[Group { name: "g".into(), runs: vec![run] }], "name = \"</title><script>\"", &[]).unwrap();
        assert!(!page.contains("<script>") && page.contains("&lt;/title&gt;"));
    }
}
