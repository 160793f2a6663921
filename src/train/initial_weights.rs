//! What a run starts from, where its recipe says so.

use crate::error::Result;
use crate::nn::ParamStore;
use crate::recipe::Recipe;
use crate::run::checkpoint::{Checkpoint, Weights};
use crate::weights::{self, Origin, is_foreign};

/// Fills a detector of `classes` with `init.weights`, if the recipe has it: weights of another program, or a
/// checkpoint, whose predictors are taken where its classes are these. Returns what the user should know. On the plan
/// device the file is only looked at.
///
/// Errors: `Io`; `Checkpoint` if the file is not of the recipe's model, or holds values that are not finite.
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
