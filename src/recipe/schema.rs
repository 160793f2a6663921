//! Checks a parsed recipe against the table of keys: unknown keys (with the nearest known one), wrong types, numbers
//! out of range, missing keys. Every error names the key in full and the line.

use std::collections::HashMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::keys::{KEYS, Key, Need, Want};
use crate::{Error, Result};

/// The place where each key of a recipe was given: a line of the file, or an override of the command line.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(HashMap<String, String>);

impl Places {
    /// The places of all keys of a file, by path. Stages are given by their index (`stage.0.flip`).
    pub(super) fn of(text: &str) -> Places {
        let mut places = Places::default();
        if let Ok(table) = DeTable::parse(text) {
            places.add_table(text, "", table.get_ref());
        }
        places
    }

    /// Records that the command line gave a key.
    pub(super) fn set(&mut self, path: &str, argument: &str) {
        self.0.insert(path.to_string(), format!("--set {argument}"));
    }

    fn add_table(&mut self, text: &str, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(path, key.get_ref());
            self.0.insert(path.clone(), line(text, key.span().start));
            self.add_value(text, &path, value.get_ref());
        }
    }

    fn add_value(&mut self, text: &str, path: &str, value: &DeValue<'_>) {
        if let Some(table) = value.as_table() {
            self.add_table(text, path, table);
        } else if let Some(array) = value.as_array() {
            for (index, item) in array.iter().enumerate().filter(|(_, item)| item.get_ref().is_table()) {
                let path = format!("{path}.{index}");
                self.0.insert(path.clone(), line(text, item.span().start));
                self.add_value(text, &path, item.get_ref());
            }
        }
    }

    /// The place (`line 12: `) of a key or of the nearest table around it.
    fn prefix(&self, mut path: &str) -> String {
        loop {
            if let Some(place) = self.0.get(path) {
                return format!("{place}: ");
            }
            match path.rsplit_once('.') {
                Some((table, _)) => path = table,
                None => return String::new(),
            }
        }
    }
}

/// The line (`line 12`) of a byte offset.
pub(super) fn line(text: &str, offset: usize) -> String {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    format!("line {}", 1 + before.iter().filter(|&&byte| byte == b'\n').count())
}

pub(super) fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_string() } else { format!("{table}.{key}") }
}

/// The three spellings of one place in a recipe.
#[derive(Clone, Debug, Default)]
pub(super) struct Spot {
    /// As in [`KEYS`]: `stage.*.flip`.
    pattern: String,
    /// As in the tree: `stage.0.flip`.
    index: String,
    /// As shown to users: `stage.pretrain.flip`.
    shown: String,
}

impl Spot {
    fn child(&self, key: &str) -> Spot {
        let pattern = join(&self.pattern, key);
        // `eval_resize` has the keys of `resize`.
        let like = KEYS.iter().find(|k| k.path == pattern && matches!(k.want, Want::Like(_)));
        let pattern = match like.map(|k| k.want) {
            Some(Want::Like(path)) => path.to_string(),
            _ => pattern,
        };
        Spot { pattern, index: join(&self.index, key), shown: join(&self.shown, key) }
    }

    fn stage(&self, index: usize, value: &Value) -> Spot {
        let shown = match value.get("name").and_then(Value::as_str) {
            Some(name) if !name.is_empty() => join(&self.shown, name),
            _ => format!("{}.{index}", self.shown),
        };
        Spot { pattern: join(&self.pattern, "*"), index: format!("{}.{index}", self.index), shown }
    }
}

/// Checks a whole recipe against [`KEYS`].
pub(super) fn check(file: &Path, root: &Table, places: &Places) -> Result<()> {
    let checker = Checker { file, places };
    checker.table(&Spot::default(), root)?;
    for key in KEYS.iter().filter(|key| key.need == Need::Required) {
        checker.required(key, root)?;
    }
    Ok(())
}

struct Checker<'a> {
    file: &'a Path,
    places: &'a Places,
}

impl Checker<'_> {
    fn error(&self, spot: &Spot, message: impl AsRef<str>) -> Error {
        Error::recipe(self.file, &spot.shown, self.places.prefix(&spot.index) + message.as_ref())
    }

    fn table(&self, spot: &Spot, table: &Table) -> Result<()> {
        let kind = table.get("kind").and_then(Value::as_str);
        for (name, value) in table {
            self.value(&spot.child(name), value, kind)?;
        }
        let here = KEYS.iter().filter(|key| key.table() == spot.pattern && key.need == Need::RequiredInTable);
        for key in here.filter(|key| kind.map_or(key.only.is_none(), |kind| key.belongs(kind))) {
            if !table.contains_key(key.name()) {
                let key_spot = spot.child(key.name());
                return Err(self.error(&key_spot, format!("missing: give {} ({})", expected(key.want), key.meaning)));
            }
        }
        Ok(())
    }

    fn value(&self, spot: &Spot, value: &Value, kind: Option<&str>) -> Result<()> {
        let pattern = spot.pattern.as_str();
        if let Some(key) = KEYS.iter().find(|key| key.path == pattern) {
            if let (Some(only), Some(kind)) = (key.only, kind.filter(|kind| !key.belongs(kind))) {
                let kinds = key_at(&format!("{}.kind", spot.index.rsplit_once('.').map_or("", |(table, _)| table)));
                let words = match kinds.map(|k| k.want) {
                    Some(Want::OneOf(words)) => words.iter().filter(|w| w.starts_with(only)).copied().collect(),
                    _ => vec![only],
                };
                let owners = words.iter().map(|w| format!("{w:?}")).collect::<Vec<_>>().join(" or ");
                let text = format!(
                    "belongs to kind = {owners}, but this table has kind = {kind:?}: remove it, or change the kind"
                );
                return Err(self.error(spot, text));
            }
            return self.leaf(spot, key, value);
        }
        if pattern == "stage" {
            let Value::Array(stages) = value else {
                return Err(self.error(spot, format!("want [[stage]] tables, found {}", found(value))));
            };
            for (index, stage) in stages.iter().enumerate() {
                let spot = spot.stage(index, stage);
                match stage {
                    Value::Table(table) => self.table(&spot, table)?,
                    other => return Err(self.error(&spot, format!("want a [[stage]] table, found {}", found(other)))),
                }
            }
            return Ok(());
        }
        if !KEYS.iter().any(|key| is_inside(key.path, pattern)) {
            return Err(self.error(spot, format!("unknown key; the nearest known key is {}", nearest(spot))));
        }
        match value {
            Value::Table(table) => self.table(spot, table),
            other => Err(self.error(spot, format!("want a table [{}], found {}", spot.shown, found(other)))),
        }
    }

    fn leaf(&self, spot: &Spot, key: &Key, value: &Value) -> Result<()> {
        if fits(key.want, value) {
            return Ok(());
        }
        let hint = match (key.want, value) {
            (Want::OneOf(words), Value::String(word)) => match closest(word, words.iter().copied()) {
                Some(near) => format!("; did you mean {near:?}?"),
                None => String::new(),
            },
            (Want::Whole(_, high) | Want::Wholes(_, high), _) if !says_limit(high) && exceeds(value, high) => {
                format!("; at most {high} is possible")
            }
            (Want::Real(..) | Want::Reals(..) | Want::List(..), _) if is_beyond_f32(value) => {
                "; other than 0, sizes from 1e-45 to 3.4e38 are possible".to_string()
            }
            _ => String::new(),
        };
        Err(self.error(spot, format!("want {}, found {}{hint}", expected(key.want), found(value))))
    }

    /// Checks that a required key is in every stage, even if its table is missing.
    fn required(&self, key: &Key, root: &Table) -> Result<()> {
        let Some(inside) = key.path.strip_prefix("stage.*.") else {
            return Ok(());
        };
        let stages = root.get("stage").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let stage_spot = Spot { pattern: "stage".into(), index: "stage".into(), shown: "stage".into() };
        for (index, stage) in stages.iter().enumerate() {
            let found = inside.split('.').try_fold(stage, |value, part| value.get(part));
            if found.is_none() {
                let spot = inside.split('.').fold(stage_spot.stage(index, stage), |spot, part| spot.child(part));
                return Err(self.error(&spot, format!("missing: give {} ({})", expected(key.want), key.meaning)));
            }
        }
        Ok(())
    }
}

/// Whether `path` lies inside table `table`.
fn is_inside(path: &str, table: &str) -> bool {
    path.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'))
}

/// The key at a path of the tree; `None` for tables and unknown paths.
pub(super) fn key_at(path: &str) -> Option<&'static Key> {
    let spot = spot_at(path);
    KEYS.iter().find(|key| key.path == spot.pattern)
}

fn spot_at(path: &str) -> Spot {
    let mut parts = path.split('.').collect::<Vec<_>>();
    if parts.len() > 1 && parts[0] == "stage" {
        parts[1] = "*";
    }
    parts.iter().fold(Spot::default(), |spot, part| spot.child(part))
}

/// Whether a path of the tree is that of a key or a table. `stage` and `stage.0` are not: they are a list and an entry.
pub(super) fn is_known(path: &str) -> bool {
    let pattern = spot_at(path).pattern;
    let is_list = matches!(pattern.as_str(), "stage" | "stage.*");
    !is_list && KEYS.iter().any(|key| key.path == pattern || is_inside(key.path, &pattern))
}

fn real(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))
}

fn fits(want: Want, value: &Value) -> bool {
    let real_in = |value: &Value, low: f64, high: f64| {
        // Infinity is only a bound in the table of keys, never a value; NaN is in no range.
        real(value).is_some_and(|number| number.is_finite() && (low..=high).contains(&number)) && !is_beyond_f32(value)
    };
    let whole_in =
        |value: &Value, low: i64, high: i64| value.as_integer().is_some_and(|number| (low..=high).contains(&number));
    match want {
        Want::Text | Want::Path => value.as_str().is_some_and(|text| !text.is_empty()),
        Want::Flag => value.as_bool().is_some(),
        Want::Whole(low, high) => whole_in(value, low, high),
        Want::Real(low, high) => real_in(value, low, high),
        Want::Reals(count, low, high) => value.as_array().is_some_and(|list| {
            !list.is_empty()
                && count.is_none_or(|count| list.len() == count)
                && list.iter().all(|item| real_in(item, low, high))
        }),
        Want::Wholes(low, high) => {
            value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(|item| whole_in(item, low, high)))
        }
        Want::List(low, high) => value.as_array().is_some_and(|list| list.iter().all(|item| real_in(item, low, high))),
        Want::OneOf(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        Want::Like(_) => value.is_table(),
    }
}

fn range(low: f64, high: f64) -> String {
    let number = |value: f64| if value == f64::MIN_POSITIVE { "more than 0".to_string() } else { value.to_string() };
    match (low.is_finite(), high.is_finite()) {
        (true, true) if low == f64::MIN_POSITIVE => format!(" (more than 0, at most {high})"),
        (true, true) => format!(" from {low} to {high}"),
        (true, false) if low == f64::MIN_POSITIVE => " (more than 0)".to_string(),
        (true, false) => format!(" (at least {})", number(low)),
        _ => String::new(),
    }
}

/// Whether a finite number other than 0, or one in a list, becomes infinite or 0 when it is rounded to f32, the type
/// that numbers are used in.
fn is_beyond_f32(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.iter().any(is_beyond_f32),
        value => real(value).is_some_and(|v| v.is_finite() && v != 0.0 && !((v as f32).is_finite() && v as f32 != 0.0)),
    }
}

/// Whether a whole number, or one of a list, is above `high`.
fn exceeds(value: &Value, high: i64) -> bool {
    match value {
        Value::Array(list) => list.iter().any(|item| exceeds(item, high)),
        value => value.as_integer().is_some_and(|number| number > high),
    }
}

/// Whether `whole_range` states the upper limit. Very large limits, which only a typing error exceeds, are not stated.
fn says_limit(high: i64) -> bool {
    high < i64::from(u32::MAX)
}

fn whole_range(low: i64, high: i64) -> String {
    if says_limit(high) { format!(" from {low} to {high}") } else { format!(" (at least {low})") }
}

/// The type and range of a key's value in words.
pub(super) fn expected(want: Want) -> String {
    match want {
        Want::Text => "a text in quotes".to_string(),
        Want::Path => "a path in quotes".to_string(),
        Want::Flag => "true or false".to_string(),
        Want::Whole(low, high) => format!("a whole number{}", whole_range(low, high)),
        Want::Real(low, high) => format!("a number{}", range(low, high)),
        Want::Reals(Some(count), low, high) => format!("a list of {count} numbers{}", range(low, high)),
        Want::Reals(None, low, high) => format!("a list of at least one number{}", range(low, high)),
        Want::Wholes(low, high) => format!("a list of at least one whole number{}", whole_range(low, high)),
        Want::List(low, high) => format!("a list of numbers{}", range(low, high)),
        Want::OneOf([word]) => format!("{word:?}"),
        Want::OneOf(words) => {
            let quoted = words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>();
            format!("one of {}", quoted.join(", "))
        }
        Want::Like(table) => format!("a table like {table}"),
    }
}

/// A value as shown in an error.
fn found(value: &Value) -> String {
    let name = match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => return "a table".to_string(),
    };
    format!("{} ({name})", value.to_string().trim())
}

fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|candidate| (strsim::normalized_damerau_levenshtein(word, candidate), candidate));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score >= 0.4).map(|(_, candidate)| candidate)
}

/// The known key (or table) nearest to an unknown one, as shown to users. Keys of the same table are preferred to keys
/// with a similar name elsewhere.
fn nearest(spot: &Spot) -> String {
    let (table, name) = spot.pattern.rsplit_once('.').unwrap_or(("", &spot.pattern));
    let mut best = (f64::MIN, String::new());
    for key in KEYS {
        // The key itself and each table that contains it are candidates.
        for (end, _) in key.path.match_indices('.').chain([(key.path.len(), "")]) {
            let candidate = &key.path[..end];
            let (home, last) = candidate.rsplit_once('.').unwrap_or(("", candidate));
            if last == "*" {
                continue;
            }
            let elsewhere = if home == table {
                0.0
            } else if is_inside(home, table) {
                0.1
            } else {
                0.2
            };
            let score = strsim::normalized_damerau_levenshtein(name, last) - elsewhere;
            if score > best.0 {
                best = (score, candidate.to_string());
            }
        }
    }
    // Show `stage.pretrain.flip`, not `stage.*.flip`.
    match (best.1.strip_prefix("stage.*."), spot.shown.strip_prefix("stage.")) {
        (Some(rest), Some(inside)) => format!("stage.{}.{rest}", inside.split('.').next().unwrap_or("*")),
        _ => best.1,
    }
}
