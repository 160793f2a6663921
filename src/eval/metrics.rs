//! The metrics of one evaluation, as tables and as JSON. Main type: [`Metrics`].

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

/// Keys of the twelve COCO metrics of boxes, in pycocotools' order.
pub const COCO_KEYS: [&str; 12] = [
    "bbox_ap",
    "bbox_ap50",
    "bbox_ap75",
    "bbox_ap_small",
    "bbox_ap_medium",
    "bbox_ap_large",
    "bbox_ar1",
    "bbox_ar10",
    "bbox_ar100",
    "bbox_ar_small",
    "bbox_ar_medium",
    "bbox_ar_large",
];

/// Keys of the twelve COCO metrics of masks, in the same order.
pub const SEGM_KEYS: [&str; 12] = [
    "segm_ap",
    "segm_ap50",
    "segm_ap75",
    "segm_ap_small",
    "segm_ap_medium",
    "segm_ap_large",
    "segm_ar1",
    "segm_ar10",
    "segm_ar100",
    "segm_ar_small",
    "segm_ar_medium",
    "segm_ar_large",
];

/// Whether IoU is computed from boxes or from masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// IoU of boxes.
    Boxes,
    /// IoU of masks.
    Masks,
}

impl Overlap {
    /// Keys of the twelve metrics.
    pub fn keys(self) -> &'static [&'static str; 12] {
        match self {
            Overlap::Boxes => &COCO_KEYS,
            Overlap::Masks => &SEGM_KEYS,
        }
    }

    /// COCO's name of this type.
    pub fn name(self) -> &'static str {
        match self {
            Overlap::Boxes => "bbox",
            Overlap::Masks => "segm",
        }
    }
}

/// Metrics of one class; -1 where there is no ground truth of that size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassMetrics {
    /// AP over IoU 0.50 to 0.95.
    pub ap: f64,
    /// AP at IoU 0.50.
    pub ap50: f64,
    /// AP of objects below 32² pixels.
    pub small: f64,
    /// AP of objects of 32² to 96² pixels.
    pub medium: f64,
    /// AP of larger objects.
    pub large: f64,
}

impl ClassMetrics {
    /// The metrics with their keys, in order.
    pub fn by_key(&self) -> [(&'static str, f64); 5] {
        [
            ("ap", self.ap),
            ("ap50", self.ap50),
            ("ap_small", self.small),
            ("ap_medium", self.medium),
            ("ap_large", self.large),
        ]
    }
}

/// The metrics of one evaluation; -1 where there is no ground truth of that size.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Whether the metrics are those of boxes or of masks.
    pub overlap: Overlap,
    /// The twelve metrics, in the order of [`COCO_KEYS`] or [`SEGM_KEYS`].
    pub numbers: [f64; 12],
    /// Metrics of each class, by its name.
    pub per_class: BTreeMap<String, ClassMetrics>,
    /// pycocotools' summary.
    pub(super) lines: Vec<String>,
}

impl Metrics {
    /// AP over IoU 0.50 to 0.95.
    pub fn ap(&self) -> f64 {
        self.numbers[0]
    }

    /// AP at IoU 0.50.
    pub fn ap50(&self) -> f64 {
        self.numbers[1]
    }

    /// The twelve metrics by key.
    pub fn by_key(&self) -> BTreeMap<String, f64> {
        self.overlap.keys().iter().map(|k| k.to_string()).zip(self.numbers).collect()
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        let width = self.per_class.keys().map(|k| k.chars().count()).max().unwrap_or(0).max(5);
        write!(f, "\n {:width$}", "class")?;
        for head in ["AP", "AP50", "small", "medium", "large"] {
            write!(f, "  {head:>6}")?;
        }
        for (name, numbers) in &self.per_class {
            write!(f, "\n {name:width$}")?;
            for (_, v) in numbers.by_key() {
                if v < 0.0 { write!(f, "  {:>6}", "–") } else { write!(f, "  {v:6.3}") }?;
            }
        }
        Ok(())
    }
}

/// Metrics of each class, of boxes and (if measured) of masks: `{"star": {"ap": .., "segm_ap": ..}}`.
pub fn per_class_json(boxes: &Metrics, masks: Option<&Metrics>) -> Value {
    let class = |name: &String| {
        let of = |m: &Metrics, prefix: &str| -> Vec<(String, Value)> {
            let numbers = m.per_class.get(name).map(ClassMetrics::by_key);
            numbers.into_iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), json!(v))).collect()
        };
        let masks = masks.map(|m| of(m, "segm_")).unwrap_or_default();
        Value::Object(of(boxes, "").into_iter().chain(masks).collect())
    };
    Value::Object(boxes.per_class.keys().map(|name| (name.clone(), class(name))).collect::<Map<_, _>>())
}
