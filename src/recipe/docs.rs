//! Generates docs/recipes.md from the table of keys and the defaults of the code, so that it cannot go stale.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;

use toml::Value;

use super::keys::{KEYS, Need};
use super::read::flatten;
use super::schema::expected;
use super::{
    BuiltInData, ExpectConfig, ExpectSplit, OptimizerConfig, OptimizerKind, Recipe, Resize, ShapesConfig, SplitConfig,
    StageConfig,
};
use crate::models::config::{BackboneKind, Detector, ModelConfig};

const HEAD: &str = include_str!("docs_head.md");

/// Recipes of defaults only. Each key has a value in at least one of them; for a key in several recipes, the value in
/// the last of them is shown.
fn references() -> [Recipe; 5] {
    let split = || Some(SplitConfig { annotations: PathBuf::from("-"), images: PathBuf::from("-") });
    let recipe = |model: ModelConfig, resize: &Resize, kind, epochs, steps| {
        let mut recipe = Recipe {
            name: "-".into(),
            expect: Some(ExpectConfig {
                split: ExpectSplit::Val,
                bbox_ap: Some(0.0),
                bbox_ap50: Some(0.0),
                segm_ap: Some(0.0),
                segm_ap50: Some(0.0),
                window: 0.0,
            }),
            stages: vec![StageConfig {
                epochs,
                steps,
                eval_batch: Some(0),
                eval_resize: Some(resize.clone()),
                resize: resize.clone(),
                optimizer: OptimizerConfig { kind, ..Default::default() },
                ..Default::default()
            }],
            model,
            ..Recipe::default()
        };
        recipe.init.weights = Some(PathBuf::from("-"));
        recipe.data.built_in = Some(BuiltInData::Shapes);
        recipe.data.shapes = Some(ShapesConfig::default());
        (recipe.data.train, recipe.data.val, recipe.data.test) = (split(), split(), split());
        recipe
    };
    let fit_crop = toml::from_str::<Resize>("kind = \"fit_crop\"\nsize = 448").expect("a fit_crop");
    let keep_ratio = Resize::default();
    let (sgd, adamw) = (OptimizerKind::Sgd, OptimizerKind::Adamw);
    let mut swin = ModelConfig::default();
    swin.backbone.kind = BackboneKind::SwinT;
    [
        recipe(swin, &fit_crop, adamw, Some(1), None),
        recipe(ModelConfig::paper(Detector::RetinaNet), &keep_ratio, sgd, Some(1), None),
        recipe(ModelConfig::paper(Detector::CascadeRcnn), &keep_ratio, sgd, Some(1), None),
        recipe(ModelConfig::paper(Detector::MaskRcnn), &keep_ratio, sgd, Some(1), None),
        recipe(ModelConfig::default(), &keep_ratio, sgd, None, Some(1)),
    ]
}

/// The default of every key in TOML, by the key's path.
fn defaults() -> HashMap<String, String> {
    let mut leaves = Vec::new();
    for recipe in references() {
        let table = recipe.to_toml().parse::<toml::Table>().expect("to_toml writes TOML");
        flatten("", &Value::Table(table), &mut leaves);
    }
    leaves.into_iter().map(|(path, value)| (path.replace("stage.0.", "stage.*."), value)).collect()
}

/// The text of docs/recipes.md.
pub fn markdown() -> String {
    let defaults = defaults();
    let mut text = HEAD.to_string();
    let mut section = "-";
    for key in KEYS {
        let first = key.path.split('.').next().filter(|_| key.path.contains('.')).unwrap_or("");
        if first != section {
            section = first;
            let title = match section {
                "" => "Top of the file".to_string(),
                "stage" => "[[stage]]".to_string(),
                table => format!("[{table}]"),
            };
            let _ =
                write!(text, "\n## {title}\n\n| key | takes | meaning | default | source |\n|---|---|---|---|---|\n");
        }
        let default = match key.need {
            Need::Default => defaults.get(key.path).map_or("–".to_string(), |value| format!("`{value}`")),
            Need::Optional => "none".to_string(),
            Need::Required => "must be given".to_string(),
            Need::RequiredInTable => "must be given in its table".to_string(),
        };
        let path = key.path.strip_prefix("stage.*.").unwrap_or(key.path);
        let only = key.only.map_or(String::new(), |kind| format!(" (`{kind}`)"));
        let takes = expected(key.want).replace("stage.*.", "");
        let _ = writeln!(text, "| `{path}`{only} | {takes} | {} | {default} | {} |", key.meaning, key.source);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of keys and the structs of the values have the same keys.
    #[test]
    fn keys_are_those_of_the_structs() {
        let defaults = defaults();
        for key in KEYS.iter().filter(|key| key.path != "stage.*.eval_resize") {
            assert!(defaults.contains_key(key.path), "{} is in KEYS, but no struct has it", key.path);
        }
        for path in defaults.keys() {
            let path = path.replace("eval_resize", "resize");
            assert!(KEYS.iter().any(|key| key.path == path), "{path} is in a struct, but not in KEYS");
        }
        for (index, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..index].iter().all(|other| other.path != key.path), "{} is twice in KEYS", key.path);
            assert!(!key.meaning.is_empty() && !key.meaning.contains('|'), "{}", key.path);
        }
    }

    #[test]
    fn docs_are_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recipes.md");
        if std::env::var_os("UPRES_BLESS").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).unwrap();
            std::fs::write(path, markdown()).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == markdown(), "docs/recipes.md is old: UPRES_BLESS=1 cargo test --release docs_are_current");
    }
}
