//! Tables of the report: what the recipe expects, the COCO metrics, and the metrics of each class.

use std::fmt::Write as _;

use super::results::Results;
use super::text::{escape, percent};

/// Rows of the metrics table: key without `bbox_` or `segm_`, and name.
const METRICS: [(&str, &str); 12] = [
    ("ap", "AP at IoU 0.50 to 0.95"),
    ("ap50", "AP at IoU 0.50"),
    ("ap75", "AP at IoU 0.75"),
    ("ap_small", "AP, area below 32²"),
    ("ap_medium", "AP, area 32² to 96²"),
    ("ap_large", "AP, area above 96²"),
    ("ar1", "AR, 1 detection an image"),
    ("ar10", "AR, 10 detections"),
    ("ar100", "AR, 100 detections"),
    ("ar_small", "AR, area below 32²"),
    ("ar_medium", "AR, area 32² to 96²"),
    ("ar_large", "AR, area above 96²"),
];

/// Columns of the class table: key and heading.
const CLASS_COLUMNS: [(&str, &str); 10] = [
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

/// The metrics that the recipe's `[expect]` section demands, and the values that the run reached. Empty if there are
/// none.
pub(super) fn expectations(all: &[Results], recipe: &toml::Table) -> String {
    let Some(expect) = recipe.get("expect").and_then(toml::Value::as_table) else { return String::new() };
    let real = |v: &toml::Value| v.as_float().or_else(|| v.as_integer().map(|i| i as f64));
    let window = expect.get("window").and_then(real).unwrap_or(0.0);
    let split = expect.get("split").and_then(toml::Value::as_str).unwrap_or("val");
    let Some(results) = all.iter().find(|r| r.split == split) else { return String::new() };
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
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h2>What the recipe must reach</h2>\
         <table><tr><th></th><th>wanted</th><th>got</th><th></th></tr>{rows}</table>\n"
    )
}

/// The COCO metrics of one evaluation, of boxes and, where there are any, of masks, and those of each class.
pub(super) fn metrics(r: &Results) -> String {
    let split = if r.split.is_empty() { String::new() } else { format!(": {}", escape(&r.split)) };
    // Headings of the columns, and the prefix of the keys in each column.
    let (heads, prefixes): (&str, &[&str]) = match r.has_masks() {
        true => ("<th>boxes</th><th>masks</th>", &["bbox_", "segm_"]),
        false => ("<th></th>", &["bbox_"]),
    };
    let mut rows = String::new();
    for (key, name) in METRICS {
        let cell = |prefix: &&str| format!("<td>{}</td>", percent(r.get(&format!("{prefix}{key}"))));
        let _ = write!(rows, "<tr><td>{name}</td>{}</tr>", prefixes.iter().map(cell).collect::<String>());
    }
    let has_row =
        |k: &str| prefixes.iter().any(|p| k.strip_prefix(p).is_some_and(|k| METRICS.iter().any(|row| row.0 == k)));
    for (key, value) in r.numbers.iter().filter(|(k, _)| !has_row(k)) {
        let _ = write!(rows, "<tr><td>{}</td><td>{}</td></tr>", escape(key), percent(*value));
    }
    let classes = classes(r);
    format!(
        "<h2>Metrics{split}</h2><div class=\"charts\"><table><tr><th>COCO, per cent</th>{heads}</tr>{rows}</table>\
         {classes}</div>\n"
    )
}

/// The metrics of each class. A column that no class has a number for is left out, except AP and AP50.
fn classes(r: &Results) -> String {
    if r.per_class.is_empty() {
        return String::new();
    }
    let is_shown = |key: &str| ["ap", "ap50"].contains(&key) || r.per_class.values().any(|c| c.contains_key(key));
    let columns: Vec<_> = CLASS_COLUMNS.iter().filter(|c| is_shown(c.0)).collect();
    let heads: String = columns.iter().map(|c| format!("<th>{}</th>", c.1)).collect();
    let mut rows = String::new();
    for (name, numbers) in &r.per_class {
        let cell = |c: &&(&str, &str)| format!("<td>{}</td>", percent(numbers.get(c.0).copied().unwrap_or(f64::NAN)));
        let _ = write!(rows, "<tr><td>{}</td>{}</tr>", escape(name), columns.iter().map(cell).collect::<String>());
    }
    format!("<div class=\"wide\"><table><tr><th>class</th>{heads}</tr>{rows}</table></div>")
}
