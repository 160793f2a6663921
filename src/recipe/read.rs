//! Reads recipes (TOML, `--set` overrides, defaults) and writes them back in resolved form.

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::Recipe;
use super::keys::{Key, Need, Want};
use super::schema::{Places, check, is_known, join, key_at, line};
use crate::models::config::{Detector, ModelConfig};
use crate::{Error, Result};

/// One `--set key=value` of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Dotted key; a stage is given by its index or name.
    pub key: String,
    /// The value as TOML, or plain text.
    pub value: String,
}

impl std::str::FromStr for Override {
    type Err = String;

    fn from_str(argument: &str) -> Result<Self, String> {
        match argument.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok(Override { key: key.trim().to_string(), value: value.trim().to_string() })
            }
            _ => Err(format!("want key=value (stage.0.epochs=3), got {argument:?}")),
        }
    }
}

/// The recipe that `train` uses without an argument.
const BUILT_IN: &str = include_str!("../../recipes/shapes.toml");

impl Recipe {
    /// Reads a recipe file and applies overrides.
    pub fn read(path: impl AsRef<Path>, overrides: &[Override]) -> Result<Recipe> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::recipe(
                path,
                "recipe",
                "no such file: name a recipe (recipes/*.toml), or none for the built-in one",
            ),
            std::io::ErrorKind::InvalidData => Error::recipe(path, "recipe", "not a text file (UTF-8)"),
            _ => Error::io(path, error),
        })?;
        Recipe::parse(&text, path, overrides)
    }

    /// The recipe that is compiled in: recipes/shapes.toml.
    pub fn built_in(overrides: &[Override]) -> Result<Recipe> {
        Recipe::parse(BUILT_IN, "recipes/shapes.toml", overrides)
    }

    /// Reads the text of a recipe. `file` is used in messages, and its name becomes the name of a run without one.
    pub fn parse(text: &str, file: impl AsRef<Path>, overrides: &[Override]) -> Result<Recipe> {
        let file = file.as_ref();
        let mut root = text.parse::<Table>().map_err(|error| {
            let place = error.span().map_or_else(|| "recipe".to_string(), |span| line(text, span.start));
            Error::recipe(file, place, format!("not TOML: {}", error.message().replace('\n', ", ")))
        })?;
        let mut places = Places::of(text);
        state_lr_batches(&mut root);
        for given in overrides {
            apply(file, &mut root, &mut places, given)?;
        }
        check(file, &root, &places)?;
        complete_model(file, &mut root)?;
        let mut recipe = Recipe::deserialize(Value::Table(root))
            .map_err(|error| Error::recipe(file, "recipe", error.message().replace('\n', ", ")))?;
        if recipe.name.is_empty() {
            let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            recipe.name =
                stem.unwrap_or_default().replace(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)), "_");
        }
        recipe.check(file)?;
        Ok(recipe)
    }

    /// The resolved recipe as TOML: every key with its value. Parsing this text returns the same recipe.
    pub fn to_toml(&self) -> String {
        self.resolved(table_of(self))
    }

    /// CRC-32C of the recipe's values, whatever the form of the file. Parts of a log are matched to their recipe by it.
    pub fn crc32c(&self) -> u32 {
        crc32c::crc32c(self.resolved(exact_table(self)).as_bytes())
    }

    /// The recipe's table as text, without keys of unused tables and of other kinds.
    fn resolved(&self, mut table: Table) -> String {
        let stages = table.get_mut("stage").and_then(Value::as_array_mut).into_iter().flatten();
        for optimizer in stages.filter_map(|stage| stage.get_mut("optimizer")?.as_table_mut()) {
            remove_other_kinds("stage.0.optimizer", optimizer);
        }
        if let Some(model) = table.get_mut("model").and_then(Value::as_table_mut) {
            let used = self.model.detector.tables();
            model.retain(|name, _| !is_head(name) || used.contains(&name));
            if let Some(backbone) = model.get_mut("backbone").and_then(Value::as_table_mut) {
                remove_other_kinds("model.backbone", backbone);
            }
        }
        toml::to_string(&table).expect("a table is TOML")
    }

    /// The keys whose values differ, as `stage.finetune.epochs: 3, was 2`. Used if a run is resumed with another
    /// recipe.
    pub fn differences(&self, was: &Recipe) -> Vec<String> {
        let leaves = |recipe: &Recipe| {
            let mut all = Vec::new();
            let table = recipe.to_toml().parse::<Table>().unwrap_or_default();
            flatten("", &Value::Table(table), &mut all);
            all
        };
        let (now, was) = (leaves(self), leaves(was));
        let find = |list: &[(String, String)], path: &str| list.iter().find(|(p, _)| p == path).map(|(_, v)| v.clone());
        let none = || "none".to_string();
        let named = |path: &str| {
            let (index, key) = path.strip_prefix("stage.")?.split_once('.')?;
            Some(format!("stage.{}.{key}", self.stages.get(index.parse::<usize>().ok()?)?.name))
        };
        let shown = |path: &String| named(path).unwrap_or_else(|| path.clone());
        let mut differences = Vec::new();
        for (path, value) in &now {
            let old = find(&was, path).unwrap_or_else(none);
            if old != *value {
                differences.push(format!("{}: {value}, was {old}", shown(path)));
            }
        }
        let gone = was.iter().filter(|(path, _)| find(&now, path).is_none());
        differences.extend(gone.map(|(path, old)| format!("{}: none, was {old}", shown(path))));
        differences
    }
}

/// A recipe or a part of it as a table in which an f32 is converted exactly to f64: 0.699999988079071.
fn exact_table(part: &impl Serialize) -> Table {
    Table::try_from(part).expect("a recipe holds only what TOML can say")
}

/// Like [`exact_table`], but with the shortest decimals that parse to the same f32: 0.7. The JSON writer finds them,
/// because it knows which values are f32.
fn table_of(part: &impl Serialize) -> Table {
    fn shorten(value: &mut Value, json: &serde_json::Value) {
        match value {
            Value::Float(exact) => {
                let reads_same = |short: &f64| short == exact || f64::from(*short as f32) == *exact;
                *exact = json.as_f64().filter(reads_same).unwrap_or(*exact);
            }
            Value::Array(list) => list.iter_mut().enumerate().for_each(|(i, value)| shorten(value, &json[i])),
            Value::Table(table) => table.iter_mut().for_each(|(key, value)| shorten(value, &json[key])),
            _ => {}
        }
    }
    let mut table = exact_table(part);
    let text = serde_json::to_string(part).expect("a recipe holds only what JSON can say");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON that was just written");
    table.iter_mut().for_each(|(key, value)| shorten(value, &json[key]));
    table
}

/// All leaves of a tree with their dotted paths; lists of plain values are leaves.
pub(super) fn flatten(path: &str, value: &Value, leaves: &mut Vec<(String, String)>) {
    match value {
        Value::Table(table) => table.iter().for_each(|(key, value)| flatten(&join(path, key), value, leaves)),
        Value::Array(list) if list.iter().any(Value::is_table) => {
            list.iter().enumerate().for_each(|(index, value)| flatten(&join(path, &index.to_string()), value, leaves));
        }
        plain => leaves.push((path.to_string(), plain.to_string())),
    }
}

/// Whether a table of `[model]` describes heads and so belongs only to some detectors.
fn is_head(table: &str) -> bool {
    Detector::ALL.iter().any(|detector| detector.tables().contains(&table))
}

/// Completes `[model]` with the defaults of its detector; refuses tables of other detectors.
fn complete_model(file: &Path, root: &mut Table) -> Result<()> {
    let model = root.entry("model").or_insert_with(|| Value::Table(Table::new()));
    let Some(model) = model.as_table_mut() else { return Ok(()) }; // refused by the check
    let word = model.get("detector").and_then(Value::as_str).unwrap_or(Detector::default().name());
    let Some(detector) = Detector::ALL.into_iter().find(|d| d.name() == word) else { return Ok(()) };
    if let Some(name) = model.keys().find(|name| is_head(name) && !detector.tables().contains(&name.as_str())) {
        let owners = Detector::ALL.into_iter().filter(|d| d.tables().contains(&name.as_str())).map(Detector::name);
        let owners = owners.collect::<Vec<_>>().join(", ");
        let text =
            format!("belongs to {owners}, but model.detector = {word:?}: remove the table, or change the detector");
        return Err(Error::recipe(file, format!("model.{name}"), text));
    }
    let defaults = table_of(&ModelConfig::paper(detector));
    fill(model, &defaults);
    Ok(())
}

/// Adds missing keys of `defaults` to `table`.
fn fill(table: &mut Table, defaults: &Table) {
    for (name, default) in defaults {
        match (table.get_mut(name), default) {
            (None, default) => drop(table.insert(name.clone(), default.clone())),
            (Some(Value::Table(inner)), Value::Table(default)) => fill(inner, default),
            _ => {}
        }
    }
}

/// Removes from the table at `path` the keys that belong to another kind than its own, because they would be refused.
fn remove_other_kinds(path: &str, table: &mut Table) {
    let Some(Value::String(kind)) = table.get("kind").cloned() else { return };
    let other = |key: &Key| !key.belongs(&kind);
    table.retain(|name, _| !key_at(&join(path, name)).is_some_and(other));
}

/// Adds a missing `lr_batch`: the learning rate is stated for the file's batch, so that overriding the batch scales
/// the rate.
fn state_lr_batches(root: &mut Table) {
    let Some(Value::Array(stages)) = root.get_mut("stage") else { return };
    for stage in stages.iter_mut().filter_map(Value::as_table_mut) {
        let Some(images @ Value::Integer(1..)) = stage.get("images_per_step").cloned() else { continue };
        if let Some(Value::Table(optimizer)) = stage.get_mut("optimizer") {
            optimizer.entry("lr_batch").or_insert(images);
        }
    }
}

/// Applies one `--set` to the tree. Unknown keys are left to the check that follows.
fn apply(file: &Path, root: &mut Table, places: &mut Places, given: &Override) -> Result<()> {
    let error = |message: String| {
        let argument = format!("--set {}={}", given.key, given.value);
        Err(Error::recipe(file, &given.key, format!("{argument}: {message}")))
    };
    let mut parts = given.key.split('.').map(str::to_string).collect::<Vec<_>>();
    if parts.iter().any(String::is_empty) {
        return error("a dotted key has no empty parts".to_string());
    }
    if parts[0] == "stage" && parts.len() > 1 {
        let Some(index) = stage_index(root, &parts[1]) else {
            let names = stage_names(root);
            let count = names.len();
            return error(format!("no stage {:?}: the recipe has {count} ({})", parts[1], names.join(", ")));
        };
        parts[1] = index.to_string();
    }
    let path = parts.join(".");
    let key = key_at(&path);
    if given.value.is_empty() && is_known(&path) {
        let inside = table_around(root, &parts);
        let needed = key.is_some_and(|key| matches!(key.need, Need::Required | Need::RequiredInTable));
        match inside {
            Some((table, name)) if !(needed && table.contains_key(name)) => drop(table.remove(name)),
            None => {} // nothing to remove
            Some(_) => {
                let is_text = key.is_some_and(|key| matches!(key.want, Want::Path | Want::Text));
                let empty = if is_text { "; an empty text is '\"\"'" } else { "" };
                return error(format!("it cannot be left out: give it a value{empty}"));
            }
        }
        places.set(&path, &format!("{}=", given.key));
        return Ok(());
    }
    let value = parse_value(&given.value, key.map(|key| key.want));
    let Some((last, tables)) = parts.split_last() else { return Ok(()) };

    let mut table = root;
    let mut rest = tables;
    if tables.first().is_some_and(|first| first == "stage") {
        let (index, stages) = (tables.get(1).and_then(|i| i.parse::<usize>().ok()), table.get_mut("stage"));
        let stage = stages.and_then(Value::as_array_mut).zip(index).and_then(|(stages, index)| stages.get_mut(index));
        let Some(stage) = stage.and_then(Value::as_table_mut) else {
            return error("cannot set a whole stage: set its keys".to_string());
        };
        table = stage;
        rest = &tables[2..];
    }
    for part in rest {
        let next = table.entry(part.as_str()).or_insert_with(|| Value::Table(Table::new()));
        let Some(next) = next.as_table_mut() else {
            return error(format!("{part} is not a table"));
        };
        table = next;
    }
    // A stage has one length: setting `epochs` removes `steps`, and the reverse.
    if path.starts_with("stage.") && tables.len() == 2 && (last == "epochs" || last == "steps") {
        table.remove(if last == "epochs" { "steps" } else { "epochs" });
    }
    table.insert(last.clone(), value);
    if last == "kind" {
        remove_other_kinds(&tables.join("."), table); // the file's keys for the previous kind
    }
    places.set(&path, &format!("{}={}", given.key, given.value));
    Ok(())
}

/// The table that contains a key, if it exists, and the key's name in it.
fn table_around<'a, 'b>(root: &'a mut Table, parts: &'b [String]) -> Option<(&'a mut Table, &'b String)> {
    let (name, tables) = parts.split_last()?;
    let (mut table, mut rest) = (root, tables);
    if let [first, index, inner @ ..] = tables
        && first == "stage"
    {
        let stages = table.get_mut("stage")?.as_array_mut()?;
        (table, rest) = (stages.get_mut(index.parse::<usize>().ok()?)?.as_table_mut()?, inner);
    }
    for part in rest {
        table = table.get_mut(part)?.as_table_mut()?;
    }
    Some((table, name))
}

fn stage_names(root: &Table) -> Vec<String> {
    let stages = root.get("stage").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    stages.iter().map(|stage| stage.get("name").and_then(Value::as_str).unwrap_or("?").to_string()).collect()
}

fn stage_index(root: &Table, named: &str) -> Option<usize> {
    let names = stage_names(root);
    match named.parse::<usize>() {
        Ok(index) => (index < names.len()).then_some(index),
        Err(_) => names.iter().position(|name| name == named),
    }
}

/// Parses the value as TOML. It is taken as plain text if it is not TOML, or if the key takes text and it is no string.
fn parse_value(text: &str, want: Option<Want>) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| {
        let value = table.remove("value")?;
        table.is_empty().then_some(value)
    });
    match (parsed, want) {
        (Some(value), Some(Want::Text | Want::Path)) if !value.is_str() => Value::String(text.to_string()),
        (Some(value), _) => value,
        (None, _) => Value::String(text.to_string()),
    }
}
