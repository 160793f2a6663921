//! Converts a whole detector for another program.
//!
//! Main function: [`export`].

use std::path::Path;

use super::file::{ForeignData, ForeignTensor};
use super::fit;
use super::program::Format;
use super::translate::{Place, Translator};
use crate::error::{Error, Result};
use crate::models::config::ModelConfig;

/// A parameter of a detector of ours.
pub struct Named {
    /// Name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements.
    pub values: Vec<f32>,
}

/// A detector for another program.
pub struct Exported {
    /// Its tensors.
    pub tensors: Vec<ForeignTensor>,
    /// Settings with which the other program computes something else.
    pub notes: Vec<String>,
}

/// Translates all parameters of a detector. `file` is the checkpoint, for messages.
///
/// Errors: `Checkpoint` if the other program has no such detector; it names the recipe's key that is the reason.
pub fn export(
    file: &Path,
    format: Format,
    cfg: &ModelConfig,
    params: impl IntoIterator<Item = Named>,
) -> Result<Exported> {
    if let Some(message) = fit::obstacle(format, cfg) {
        return Err(Error::checkpoint(file, format!("cannot be a detector of {format}: {message}")));
    }
    let translator = Translator::new(format, cfg);
    let mut tensors = Vec::new();
    for Named { name, shape, values } in params {
        let there = translator.export(&name, &shape, &values)?;
        let Place { name: theirs, placement } = translator.expect(&name, &shape)?;
        if let Some(start) = theirs.strip_suffix("relative_position_bias_table") {
            tensors.push(position_index(format!("{start}relative_position_index"), cfg.backbone.window));
        }
        tensors.push(ForeignTensor { name: theirs, shape: placement.shape, data: ForeignData::F32(there) });
    }
    Ok(Exported { tensors, notes: fit::differences(format, cfg) })
}

/// The row of the position bias table for each pair of tokens in a window: a constant that mmdetection stores with its
/// weights.
fn position_index(name: String, window: usize) -> ForeignTensor {
    let (w, n) = (window as i64, window * window);
    let pair = |i: i64, j: i64| ((i / w - j / w + w - 1) * (2 * w - 1)) + (i % w - j % w + w - 1);
    let index = (0..n as i64).flat_map(|i| (0..n as i64).map(move |j| pair(i, j))).collect();
    ForeignTensor { name, shape: vec![n, n], data: ForeignData::I64(index) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of mmdetection and torchvision for a window of 7.
    #[test]
    fn position_index_is_theirs() {
        let t = position_index("x".into(), 7);
        let ForeignData::I64(index) = &t.data else { panic!("want integers") };
        assert_eq!(t.shape, [49, 49]);
        assert_eq!((&index[..8], &index[49..52]), (&[84, 83, 82, 81, 80, 79, 78, 71][..], &[85, 84, 83][..]));
    }
}
