//! Converts checkpoints to weights files of other programs, and back.
//!
//! Main functions: [`to_foreign`], [`from_foreign`].

use std::collections::BTreeSet;
use std::path::Path;

use super::checkpoint::{Checkpoint, Meta, Weights, save};
use crate::device::Device;
use crate::engine::feed::pixel_stats;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::ParamStore;
use crate::output::write_atomic;
use crate::output::{check_files, refuse_existing};
use crate::recipe::Recipe;
use crate::tape::Param;
use crate::weights::{self, Format, Keep, Named, Origin};

/// The result of a conversion.
#[derive(Debug)]
pub struct Converted {
    /// Number of tensors in the file.
    pub tensors: usize,
    /// Number of elements of the weights.
    pub parameters: usize,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Writes a checkpoint's weights (their running averages, where it has them) as a file for another program.
///
/// Errors: `Value` if `out` exists already or cannot be written; `Checkpoint` if `checkpoint` cannot be read, or if the
/// other program has no such detector.
pub fn to_foreign(checkpoint: &Path, format: Format, out: &Path) -> Result<Converted> {
    check_out(checkpoint, out)?;
    let file = Checkpoint::load(checkpoint)?;
    let recipe = file.recipe()?;
    let (store, _) = model(&Device::cpu().planner(), &recipe, file.meta.classes.len())?;
    let values = file.model_values(&store, Weights::Averaged)?;
    let named = |(p, v): (&Param, &[f32])| Named { name: p.name().to_string(), shape: p.shape(), values: v.to_vec() };
    let params = store.all().iter().zip(values).map(named);
    let exported = weights::export(checkpoint, format, &recipe.model, params)?;
    write_atomic(out, |to| weights::write(to, &exported.tensors, &file.meta.classes))?;
    Ok(Converted {
        tensors: exported.tensors.len(),
        parameters: store.all().iter().map(|p| p.numel()).sum(),
        notes: exported.notes,
    })
}

/// Makes a checkpoint from the weights of another program. `classes` are the names of the file's classes, in its order
/// and without the background; classes without a name ([`is_left_out`]) are dropped.
///
/// Errors: the same as [`weights::load`]; `Value` if `out` exists already or cannot be written, if no class has a name,
/// and if two have the same one.
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
    let origin = Origin { format: Some(format), keep: Some(Keep { classes: &keep, of: classes.len() }) };
    let loaded = weights::load(file, &recipe.model, &store, origin)?;
    // Category ids are the numbers of the classes in the file, from 1. For torchvision's COCO detectors these are
    // COCO's own.
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

/// Refuses to overwrite a file: weights are costly.
fn check_out(input: &Path, out: &Path) -> Result<()> {
    check_files(&[("OUTPUT", out)], &[("the input", input)])?;
    refuse_existing("OUTPUT", out)
}
