//! Loads the initial weights of a run (`init.weights` of its recipe).

use crate::error::Result;
use crate::nn::ParamStore;
use crate::recipe::Recipe;
use crate::run::checkpoint::{Checkpoint, Weights};
use crate::weights::{self, Origin, is_foreign};

/// Fills a detector of `classes` from `init.weights`, if the recipe has it. The file holds weights of another program,
/// or is a checkpoint; the class predictors of a checkpoint are loaded only if its classes equal `classes`. Returns
/// notes for the user. On the plan device, the file is only checked.
///
/// Errors: `Io`; `Checkpoint` if the file does not fit the recipe's model, or holds a value that is not finite.
pub fn load_initial_weights(recipe: &Recipe, classes: &[String], store: &ParamStore) -> Result<Vec<String>> {
    let Some(file) = &recipe.init.weights else { return Ok(Vec::new()) };
    let notes = if is_foreign(file).unwrap_or(false) {
        weights::load(file, &recipe.model, store, Origin::default())?.notes
    } else {
        let checkpoint = Checkpoint::load(file)?;
        if checkpoint.meta.classes == classes {
            checkpoint.load_model(store, Weights::Averaged)?;
            Vec::new()
        } else {
            checkpoint.load_all_but_classes(store)?;
            let theirs = checkpoint.meta.classes.join(", ");
            vec![format!(
                "its classes ({theirs}) are others than the data's, or in another order: they are learnt anew"
            )]
        }
    };
    Ok(notes.into_iter().map(|note| format!("init.weights: {note}")).collect())
}
