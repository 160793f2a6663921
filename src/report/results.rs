//! Reads `metrics.json`, the metrics of a finished run. All forms that training and `evaluate` write are accepted.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::run::log_reader::{RunLog, number, without_bare_nan};

/// The metrics of one evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// The evaluated split: `val` or `test`; `last evaluation` if it comes from the log; empty if the file does not
    /// say.
    pub split: String,
    /// COCO metrics by key, 0 to 1.
    pub numbers: BTreeMap<String, f64>,
    /// The metrics of each class by key: `ap`, `ap50`, `ap_small`, `segm_ap` and so on.
    pub per_class: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Results {
    /// A metric by key; NaN if there is no such metric.
    pub fn get(&self, key: &str) -> f64 {
        self.numbers.get(key).copied().unwrap_or(f64::NAN)
    }

    /// Whether masks were measured too.
    pub fn has_masks(&self) -> bool {
        self.numbers.contains_key("segm_ap")
    }

    /// Reads `metrics.json` of a run. Without a readable one, takes the last evaluation of the log.
    pub fn of_run(dir: &Path, log: &RunLog) -> Vec<Results> {
        let text = std::fs::read_to_string(dir.join("metrics.json")).unwrap_or_default();
        let found = Self::parse(&text);
        if !found.is_empty() {
            return found;
        }
        let last = log.evals.last().map(|e| Results {
            split: "last evaluation".into(),
            numbers: e.metrics.clone(),
            per_class: e.per_class.iter().map(|(k, &v)| (k.clone(), BTreeMap::from([("ap".to_string(), v)]))).collect(),
        });
        last.into_iter().collect()
    }

    /// Parses a `metrics.json`: one evaluation (`{"bbox_ap": ..}` or `{"metrics": {..}, "per_class": {..}}`) or several
    /// by split (`{"val": {..}, "test": {..}}`). Empty if there is none.
    fn parse(text: &str) -> Vec<Results> {
        let read = |t: &str| serde_json::from_str::<Value>(t).ok();
        let Some(Value::Object(root)) = read(text).or_else(|| read(&without_bare_nan(text))) else {
            return Vec::new();
        };
        let root = Value::Object(root);
        if let Some(one) = Self::from_value(&root) {
            return vec![one];
        }
        let splits = root.as_object().into_iter().flatten();
        splits.filter_map(|(k, v)| Self::from_value(v).map(|r| Results { split: k.clone(), ..r })).collect()
    }

    /// One evaluation; `None` if the value has no metric.
    fn from_value(v: &Value) -> Option<Results> {
        let numbers = v.get("metrics").filter(|m| m.is_object()).unwrap_or(v);
        let numbers: BTreeMap<String, f64> = numbers
            .as_object()?
            .iter()
            .filter(|(k, v)| (k.starts_with("bbox_") || k.starts_with("segm_")) && !v.is_object() && !v.is_array())
            .map(|(k, v)| (k.clone(), number(v)))
            .collect();
        if numbers.is_empty() {
            return None;
        }
        let per_class = v.get("per_class").and_then(Value::as_object).into_iter().flatten();
        let split = v.get("split").and_then(Value::as_str).unwrap_or_default().to_string();
        Some(Results { split, numbers, per_class: per_class.map(|(k, v)| (k.clone(), class_numbers(v))).collect() })
    }
}

/// The metrics of one class: an object by key, a pair of AP and AP50, or AP alone.
fn class_numbers(v: &Value) -> BTreeMap<String, f64> {
    match v {
        Value::Array(pair) => ["ap", "ap50"].iter().map(|k| k.to_string()).zip(pair.iter().map(number)).collect(),
        Value::Object(all) => all.iter().map(|(k, v)| (k.trim_start_matches("bbox_").to_string(), number(v))).collect(),
        other => BTreeMap::from([("ap".to_string(), number(other))]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let flat = Results::parse(r#"{"bbox_ap": 0.5, "bbox_ap50": NaN, "images": 3, "split": "val"}"#);
        assert_eq!((flat.len(), flat[0].get("bbox_ap"), flat[0].split.as_str()), (1, 0.5, "val"));
        assert!(flat[0].get("bbox_ap50").is_nan() && flat[0].get("images").is_nan());
        let nested = Results::parse(
            r#"{"val": {"metrics": {"bbox_ap": 0.4},
                        "per_class": {"a": 0.1, "b": {"ap": 0.2, "bbox_ap50": 0.3, "segm_ap": 0.1}, "c": [0.4, 0.5],
                                      "d": null}},
                "test": {"bbox_ap": 0.3}, "seconds": 7}"#,
        );
        assert_eq!(nested.iter().map(|r| r.split.as_str()).collect::<Vec<_>>(), ["test", "val"]);
        let classes = &nested[1].per_class;
        assert!(classes["a"]["ap"] == 0.1 && !classes["a"].contains_key("ap50") && classes["d"]["ap"].is_nan());
        assert_eq!((classes["b"]["ap"], classes["b"]["ap50"], classes["b"]["segm_ap"]), (0.2, 0.3, 0.1));
        assert_eq!((classes["c"]["ap"], classes["c"]["ap50"]), (0.4, 0.5));
        for bad in ["", "[1]", "{", "{\"a\": {\"b\": 1}}", "3"] {
            assert!(Results::parse(bad).is_empty(), "{bad}");
        }
    }
}
