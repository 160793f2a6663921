//! Checkpoints to weights files of other programs, and back.

use std::collections::BTreeSet;
use std::path::Path;

use super::checkpoint::{Checkpoint, Meta, save};
use crate::device::Device;
use crate::engine::feed::pixel_stats;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::ParamStore;
use crate::output::{check_files, refuse_existing, write_atomic};
use crate::recipe::Recipe;
use crate::weights::{self, Format, Origin};

/// What has been written.
#[derive(Debug)]
pub struct Converted {
    /// Tensors of the file.
    pub tensors: usize,
    /// Elements of the weights.
    pub parameters: usize,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Writes a checkpoint's weights (their running averages, where it has them) for another program.
///
/// Errors: `Value` if `out` is there already, or cannot be written; `Checkpoint` if `checkpoint` cannot be read, or if its detector
/// is none of the other program's.
pub fn to_foreign(checkpoint: &Path, format: Format, out: &Path) -> Result<Converted> {
    check_out(checkpoint, out)?;
    let file = Checkpoint::load(checkpoint)?;
    let recipe = file.recipe()?;
    let (store, _) = model(&Device::cpu().planner(), &recipe, file.meta.classes.len())?;
    let values = file.model_values(&store, true)?;
    let params = store.all().iter().zip(values).map(|(p, v)| (p.name().to_string(), p.shape(), v.to_vec()));
    let exported = weights::export(checkpoint, format, &recipe.model, params)?;
    write_atomic(out, |to| weights::write(to, &exported.tensors, &file.meta.classes))?;
    Ok(Converted {
        tensors: exported.tensors.len(),
        parameters: store.all().iter().map(|p| p.numel()).sum(),
        notes: exported.notes,
    })
}

/// Makes a checkpoint of the weights of another program. `classes` are the names of the file's classes, in its order and
/// without background; those without a name ([`is_left_out`]) are left out.
///
/// Errors: as [`weights::load`]; `Value` if `out` is there already or cannot be written, and for class names that are none.
pub fn from_foreign(file: &Path, format: Format, recipe: &Recipe, classes: &[String], out: &Path) -> Result<Converted> {
    check_out(file, out)?;
    let keep: Vec<usize> = (0..classes.len()).filter(|&i| !is_left_out(&classes[i])).collect();
    let names: Vec<String> = keep.iter().map(|&i| classes[i].clone()).collect();
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|n| !seen.insert(*n)) {
        return Err(Error::value("--classes", format!("{twice:?} is named twice")));
    }
    if names.is_empty() {
        return Err(Error::value("--classes", "want at least one name"));
    }
    let (store, _model) = model(&Device::cpu(), recipe, names.len())?;
    let origin = Origin { format: Some(format), keep: Some((&keep, classes.len())) };
    let loaded = weights::load(file, &recipe.model, &store, origin)?;
    // The number of a class in the file, from 1: that of torchvision's COCO detectors is COCO's own.
    let ids = keep.iter().map(|&i| i as i64 + 1).collect();
    let meta = Meta { stage: recipe.stages.len().saturating_sub(1), ..Meta::new(recipe.to_toml(), names, ids) };
    let tensors: Vec<_> = store.all().iter().map(|p| (p.name().to_string(), p.value())).collect();
    save(out, &meta, &tensors)?;
    Ok(Converted {
        tensors: tensors.len(),
        parameters: store.all().iter().map(|p| p.numel()).sum(),
        notes: loaded.notes,
    })
}

/// Whether a class has no name: torchvision's COCO detectors have rows for numbers that COCO does not use.
pub fn is_left_out(name: &str) -> bool {
    matches!(name, "" | "-" | "N/A")
}

fn model(device: &Device, recipe: &Recipe, classes: usize) -> Result<(ParamStore, Model)> {
    let mut store = ParamStore::new(device);
    let model = Model::new(&mut store.builder(recipe.seed), &recipe.model, classes, pixel_stats(&recipe.data))?;
    Ok((store, model))
}

/// Weights are costly: none are overwritten.
fn check_out(input: &Path, out: &Path) -> Result<()> {
    check_files(&[("OUTPUT", out)], &[("the input", input)])?;
    refuse_existing("OUTPUT", out)
}
