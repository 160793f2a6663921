//! Weights files of other programs, in the safetensors format: reads the tensors of any program, writes files that
//! torch reads.
//!
//! Main functions: [`is_foreign`], [`write`].

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};

use crate::error::{Error, Result};

/// Key of a checkpoint's metadata. A file that has it is one of our checkpoints.
pub(crate) const OURS: &str = "upres";

/// The longest header that the format allows.
const HEADER_MAX: u64 = 100_000_000;

/// Whether a file is a weights file of another program: false for our checkpoints and for files that hold no weights.
pub fn is_foreign(path: &Path) -> Result<bool> {
    let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut start = Vec::new();
    (&file).take(8).read_to_end(&mut start).map_err(|e| Error::io(path, e))?;
    if is_pickle(&start) {
        return Ok(true);
    }
    let Ok(start) = <[u8; 8]>::try_from(start) else { return Ok(false) };
    let len = u64::from_le_bytes(start);
    let mut header = Vec::new();
    if len <= HEADER_MAX {
        (&file).take(len).read_to_end(&mut header).map_err(|e| Error::io(path, e))?;
    }
    let header: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_slice(&header);
    Ok(header.is_ok_and(|h| h.get("__metadata__").is_none_or(|m| m.get(OURS).is_none())))
}

/// Whether a file is PyTorch's own: a zip archive, or (before 1.6) a bare pickle.
fn is_pickle(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || (bytes.len() >= 2 && bytes[0] == 0x80 && (2..=5).contains(&bytes[1]))
}

/// The error for a file that the safetensors library refuses.
pub(crate) fn broken(path: &Path, bytes: &[u8], error: SafeTensorError) -> Error {
    if is_pickle(bytes) {
        let message = "a PyTorch file: make a safetensors file of it, `python tools/pth_to_safetensors.py FILE.pth \
                       FILE.safetensors` (docs/interchange.md)";
        return Error::checkpoint(path, message);
    }
    Error::checkpoint(path, format!("not a whole safetensors file ({error}): truncated, or something else"))
}

/// The values of a tensor, converted to f32.
///
/// Errors: `Checkpoint` for other types than f32, f16 and bf16, and for values that are not finite.
pub(super) fn values(path: &Path, name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let bytes = view.data();
    let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytemuck::pod_collect_to_vec(bytes),
        Dtype::F16 => halves().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        other => {
            let message = format!("{name} is {other:?}: weights in f32, f16 or bf16 are read, convert it in torch");
            return Err(Error::checkpoint(path, message));
        }
    };
    match values.iter().find(|v| !v.is_finite()) {
        Some(v) => Err(Error::checkpoint(path, format!("{name} holds {v}: these weights are spoilt"))),
        None => Ok(values),
    }
}

/// A tensor for another program.
pub struct ForeignTensor {
    /// Its name there.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Its elements, in the other program's order.
    pub data: ForeignData,
}

/// Elements of a [`ForeignTensor`].
pub enum ForeignData {
    /// Weights.
    F32(Vec<f32>),
    /// A table of indices.
    I64(Vec<i64>),
}

impl ForeignTensor {
    fn bytes(&self) -> &[u8] {
        match &self.data {
            ForeignData::F32(v) => bytemuck::cast_slice(v),
            ForeignData::I64(v) => bytemuck::cast_slice(v),
        }
    }
}

/// Writes tensors and the class names in the form of torch's safetensors files (`format` is `pt`).
pub fn write(out: &mut dyn Write, tensors: &[ForeignTensor], classes: &[String]) -> io::Result<()> {
    // The wider type comes first, so that every tensor begins at a multiple of its element size.
    let (wide, narrow): (Vec<_>, Vec<_>) = tensors.iter().partition(|t| matches!(t.data, ForeignData::I64(_)));
    let tensors: Vec<&ForeignTensor> = wide.into_iter().chain(narrow).collect();
    let classes = serde_json::to_string(classes).map_err(io::Error::other)?;
    let program = concat!("upres ", env!("CARGO_PKG_VERSION"));
    let mut header = serde_json::Map::new();
    let metadata = serde_json::json!({ "format": "pt", "classes": classes, "written_by": program });
    header.insert("__metadata__".into(), metadata);
    let mut offset = 0;
    for t in &tensors {
        let dtype = if matches!(t.data, ForeignData::I64(_)) { "I64" } else { "F32" };
        let end = offset + t.bytes().len();
        let entry = serde_json::json!({ "dtype": dtype, "shape": t.shape, "data_offsets": [offset, end] });
        header.insert(t.name.clone(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).map_err(io::Error::other)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.iter().try_for_each(|t| out.write_all(t.bytes()))?;
    out.flush()
}
