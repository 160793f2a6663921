//! Checkpoints: safetensors files with the whole state of a run, so that it can be resumed bit-exactly. Files are
//! written atomically.
//!
//! Tensors: parameters under their names, `momentum.<name>` (AdamW: `exp_avg.<name>`, `exp_avg_sq.<name>`),
//! `ema.<name>`. All are F32, except optimizer state in bf16, which is BF16 and comes last, so that the data of every
//! tensor is aligned to its element type. The metadata holds [`Meta`] as JSON, and a checksum of this JSON and the
//! tensors' bytes. Main type: [`Checkpoint`].

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::engine::is_state;
use crate::error::{Error, Result};
use crate::format::counted;
use crate::nn::ParamStore;
use crate::output::write_atomic;
use crate::recipe::Recipe;
use crate::tape::Param;
use crate::tensor::{DType, Tensor};
use crate::weights;

/// Version of the format. It is raised when an older program could not read the file. Files without bf16 tensors are
/// still written as version 1.
const FORMAT: u32 = 2;
/// Key of [`Meta`] in the safetensors metadata.
const META_KEY: &str = weights::OURS;
/// Key of the CRC-32C (hexadecimal) of the metadata's JSON text followed by the tensors' bytes.
const CHECKSUM_KEY: &str = "crc32c";

/// Metadata of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the format.
    pub format: u32,
    /// The resolved recipe as TOML.
    pub recipe: String,
    /// Class names, in the order of the detector's outputs.
    pub classes: Vec<String>,
    /// Category id of each class in the annotation file.
    pub category_ids: Vec<i64>,
    /// Index of the stage.
    pub stage: usize,
    /// Optimizer steps done in the stage.
    pub step: u64,
    /// Optimizer steps done in the run.
    pub global_step: u64,
    /// Seconds of training so far.
    pub time_s: f64,
    /// The run's best validation AP so far.
    pub best_ap: Option<f64>,
    /// An evaluation is due before the next step: it had not ended when the checkpoint was written.
    #[serde(default)]
    pub evaluation_due: bool,
}

impl Meta {
    /// Metadata of a run that has not begun.
    pub fn new(recipe: String, classes: Vec<String>, category_ids: Vec<i64>) -> Meta {
        Meta {
            format: 1,
            recipe,
            classes,
            category_ids,
            stage: 0,
            step: 0,
            global_step: 0,
            time_s: 0.0,
            best_ap: None,
            evaluation_due: false,
        }
    }
}

/// A checkpoint in memory.
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// Its metadata.
    pub meta: Meta,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor of a checkpoint.
struct Stored {
    shape: Vec<usize>,
    /// Converted to f32 where the file has bf16.
    values: Vec<f32>,
}

/// The weights to take from a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// The parameters as the optimizer left them.
    Trained,
    /// Their running averages where the checkpoint has them, otherwise the parameters.
    Averaged,
}

/// Writes a checkpoint. On an error the old file is intact and no temporary file remains.
pub fn save(path: &Path, meta: &Meta, tensors: &[(String, Tensor)]) -> Result<()> {
    write_atomic(path, |mut out| write_to(&mut out, meta, tensors))
}

/// Writes the file's bytes: length of the header, header, tensors.
fn write_to(out: &mut impl Write, meta: &Meta, tensors: &[(String, Tensor)]) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    let format = if tensors.iter().any(|(_, t)| t.dtype() == DType::BF16) { FORMAT } else { 1 };
    let text = serde_json::to_string(&Meta { format, ..meta.clone() }).map_err(std::io::Error::other)?;
    let mut tensors: Vec<&(String, Tensor)> = tensors.iter().collect();
    tensors.sort_by_key(|(_, t)| Reverse(t.dtype().bytes()));
    let mut sum = crc32c::crc32c(text.as_bytes());
    for (_, t) in &tensors {
        sum = crc32c::crc32c_append(sum, &content(t)?);
    }
    header.insert("__metadata__".into(), serde_json::json!({ META_KEY: text, CHECKSUM_KEY: format!("{sum:08x}") }));
    let mut offset = 0;
    for (name, t) in &tensors {
        let end = offset + t.bytes();
        let dtype = t.dtype().name().to_uppercase();
        let entry = serde_json::json!({ "dtype": dtype, "shape": t.shape(), "data_offsets": [offset, end] });
        header.insert(name.clone(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).map_err(std::io::Error::other)?;
    header.resize(header.len().next_multiple_of(8), b' '); // tensor data begins at a multiple of 8
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, t) in tensors {
        out.write_all(&content(t)?)?;
    }
    out.flush()
}

/// The bytes of a tensor in f32 or bf16. Other types are never saved.
fn content(t: &Tensor) -> std::io::Result<Cow<'_, [u8]>> {
    let bytes = match t.dtype() {
        DType::BF16 => t.read::<bf16>().map(as_bytes),
        _ => t.read::<f32>().map(as_bytes),
    };
    bytes.map_err(std::io::Error::other)
}

fn as_bytes<T: bytemuck::Pod>(elements: Cow<'_, [T]>) -> Cow<'_, [u8]> {
    match elements {
        Cow::Borrowed(elements) => Cow::Borrowed(bytemuck::cast_slice(elements)),
        Cow::Owned(elements) => Cow::Owned(bytemuck::pod_collect_to_vec(&elements)),
    }
}

/// The tensors of a file, converted to f32.
fn stored(path: &Path, file: &SafeTensors<'_>) -> Result<BTreeMap<String, Stored>> {
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let values = match view.dtype() {
            Dtype::F32 => bytemuck::pod_collect_to_vec(view.data()),
            Dtype::BF16 if is_state(&name) => {
                bytemuck::pod_collect_to_vec::<u8, bf16>(view.data()).into_iter().map(bf16::to_f32).collect()
            }
            other => return Err(Error::checkpoint(path, format!("{name}: want F32, got {other:?}"))),
        };
        tensors.insert(name, Stored { shape: view.shape().to_vec(), values });
    }
    Ok(tensors)
}

impl Checkpoint {
    /// Reads and checks a file.
    ///
    /// Errors: `Io`; `Checkpoint` if the file is truncated, damaged, of a newer format or not a checkpoint.
    pub fn load(path: &Path) -> Result<Checkpoint> {
        let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
        let broken = |e: safetensors::SafeTensorError| weights::broken(path, &bytes, e);
        let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
        let (header_len, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let metadata = header.metadata().as_ref();
        let text = metadata.and_then(|m| m.get(META_KEY)).ok_or_else(|| {
            Error::checkpoint(
                path,
                "no upres metadata: a weights file of another program, not a checkpoint (`convert --from` makes one)",
            )
        })?;
        // The safetensors library has checked that the tensors fill the rest of the file.
        let data = bytes.get(8 + header_len..).unwrap_or_default();
        let sum = format!("{:08x}", crc32c::crc32c_append(crc32c::crc32c(text.as_bytes()), data));
        if metadata.and_then(|m| m.get(CHECKSUM_KEY)).is_some_and(|want| *want != sum) {
            let message = "damaged: its content does not match its checksum; take another checkpoint of the run";
            return Err(Error::checkpoint(path, message));
        }
        let meta: Meta = serde_json::from_str(text).map_err(|e| {
            Error::checkpoint(path, format!("metadata cannot be read ({e}); written by another version?"))
        })?;
        if meta.format > FORMAT {
            let message = format!("format {} is newer than this program's {FORMAT}: update upres", meta.format);
            return Err(Error::checkpoint(path, message));
        }
        Ok(Checkpoint { path: path.to_path_buf(), meta, tensors: stored(path, &file)? })
    }

    /// The recipe of the run.
    ///
    /// Errors: `Checkpoint` if this version of the program does not know a key of it.
    pub fn recipe(&self) -> Result<Recipe> {
        Recipe::parse(&self.meta.recipe, &self.path, &[]).map_err(|e| {
            Error::checkpoint(&self.path, format!("its recipe cannot be used by this version of upres: {e}"))
        })
    }

    /// Overwrites a model's parameters.
    ///
    /// Errors: `Checkpoint` that names the first tensors that are missing or have another shape, or the first one that
    /// is not finite. On an error nothing is changed.
    pub fn load_model(&self, store: &ParamStore, weights: Weights) -> Result<()> {
        let values = self.model_values(store, weights)?;
        store.all().iter().zip(values).try_for_each(|(p, values)| p.load(values))
    }

    /// Like [`Checkpoint::load_model`] with averaged weights, but layers whose rows are classes keep their values.
    pub fn load_all_but_classes(&self, store: &ParamStore) -> Result<()> {
        let of_classes =
            |p: &&Param| [".fc_cls.", ".fc_reg.", ".conv_logits.", ".retina_cls."].iter().any(|l| p.name().contains(l));
        let rest: Vec<&Param> = store.all().iter().filter(|p| !of_classes(p)).collect();
        let values = self.values_of(store, &rest, Weights::Averaged)?;
        rest.iter().zip(values).try_for_each(|(p, values)| p.load(values))
    }

    /// The values of a model's parameters, in the store's order. Like [`Checkpoint::load_model`], but changes nothing.
    pub fn model_values(&self, store: &ParamStore, weights: Weights) -> Result<Vec<&[f32]>> {
        self.values_of(store, &store.all().iter().collect::<Vec<_>>(), weights)
    }

    /// The values of some of the store's parameters.
    fn values_of(&self, store: &ParamStore, params: &[&Param], weights: Weights) -> Result<Vec<&[f32]>> {
        let (mut wrong, mut spoilt) = (Vec::new(), None);
        let mut all = Vec::with_capacity(params.len());
        for p in params {
            match self.tensors.get(p.name()) {
                None => wrong.push(format!("{} is missing", p.name())),
                Some(Stored { shape, .. }) if *shape != p.shape() => {
                    wrong.push(format!("{} is {shape:?}, the model wants {:?}", p.name(), p.shape()));
                }
                Some(stored) => {
                    let average = format!("ema.{}", p.name());
                    let average = self.tensors.get_key_value(&average).filter(|_| weights == Weights::Averaged);
                    let (name, Stored { values, .. }) = average.map_or((p.name(), stored), |(name, s)| (name, s));
                    let bad = values.iter().find(|v| !v.is_finite());
                    spoilt = spoilt.or(bad.map(|bad| format!("{name} holds {bad}: use another checkpoint")));
                    all.push(values.as_slice());
                }
            }
        }
        match spoilt {
            _ if !wrong.is_empty() => Err(self.mismatch(store, &wrong)),
            Some(message) => Err(Error::checkpoint(&self.path, message)),
            None => Ok(all),
        }
    }

    /// The error for tensors that do not match the model, with the likely cause.
    fn mismatch(&self, store: &ParamStore, wrong: &[String]) -> Error {
        let heads = wrong.iter().all(|w| w.contains(".fc_cls.") || w.contains(".fc_reg."));
        let cause = match store.all().iter().find(|p| p.name().ends_with("fc_cls.bias")) {
            Some(p) if heads => {
                let (have, want) = (self.meta.classes.len(), p.numel() - 1);
                format!("of another class count: the checkpoint has {}, the recipe {want}", counted(have, "class"))
            }
            _ => "of another model".into(),
        };
        let more = if wrong.len() > 3 { format!(" and {} more", wrong.len() - 3) } else { String::new() };
        Error::checkpoint(&self.path, format!("{cause}: {}{more}", wrong[..wrong.len().min(3)].join("; ")))
    }

    /// Whether the checkpoint has a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The values of a tensor of `n` elements.
    ///
    /// Errors: `Checkpoint` if it is missing, has another number of elements, or holds NaN. Infinity is allowed,
    /// because squares may have overflowed.
    pub fn values(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        match self.tensors.get(name) {
            Some(Stored { values, .. }) if values.iter().any(|v| v.is_nan()) => {
                Err(Error::checkpoint(&self.path, format!("{name} holds NaN: use another checkpoint")))
            }
            Some(Stored { values, .. }) if values.len() == n => Ok(values.clone()),
            Some(Stored { shape, .. }) => {
                Err(Error::checkpoint(&self.path, format!("{name} is {shape:?}, want {n} elements")))
            }
            None => Err(Error::checkpoint(&self.path, format!("{name} is missing: the stage's settings have changed"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::nn::Init;
    use crate::tape::Role;

    fn store(classes: usize) -> ParamStore {
        let mut store = ParamStore::new(&Device::cpu());
        let mut b = store.builder(1);
        b.param("conv.weight", Role::Weight, &[2, 3], Init::Normal(1.0)).unwrap();
        b.param("fc_cls.bias", Role::Bias, &[classes + 1], Init::Normal(1.0)).unwrap();
        b.sub("head").param("fc_cls.weight", Role::Weight, &[classes + 1, 2], Init::Normal(1.0)).unwrap();
        store
    }

    fn meta() -> Meta {
        Meta {
            step: 7,
            best_ap: Some(0.1 + 0.2),
            ..Meta::new("name = \"x\"".into(), vec!["a".into(), "b".into()], vec![1, 9])
        }
    }

    fn state(s: &ParamStore) -> Vec<(String, Tensor)> {
        s.all().iter().map(|p| (p.name().to_string(), p.value())).collect()
    }

    /// The error names the tensor that is read: the average where there is one.
    #[test]
    fn what_is_not_finite_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        for (weight, average, weights, named) in [
            (f32::NAN, 1.0, Weights::Averaged, None),
            (f32::NAN, 1.0, Weights::Trained, Some("conv.weight holds NaN")),
            (1.0, f32::NEG_INFINITY, Weights::Averaged, Some("ema.conv.weight holds -inf")),
            (1.0, f32::NEG_INFINITY, Weights::Trained, None),
        ] {
            let s = store(2);
            let mut tensors = state(&s);
            let six = |v: f32| Tensor::from_slice(&Device::cpu(), &[2, 3], &[1.0, v, 1.0, 1.0, v, 1.0]).unwrap();
            tensors[0].1 = six(weight);
            tensors.push(("ema.conv.weight".into(), six(average)));
            save(&path, &meta(), &tensors).unwrap();
            let loaded = Checkpoint::load(&path).unwrap().load_model(&store(2), weights);
            match named {
                None => loaded.unwrap(),
                Some(named) => assert!(loaded.unwrap_err().to_string().contains(named), "{named}"),
            }
        }
    }

    #[test]
    fn round_trip_is_exact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let s = store(2);
        s.all()[0].load(&[f32::MIN_POSITIVE, -0.0, 1.0e-42, f32::MAX, 0.1, -7.0]).unwrap();
        save(&path, &meta(), &state(&s)).unwrap();
        let c = Checkpoint::load(&path).unwrap();
        assert_eq!(c.meta, meta());
        let other = store(2);
        other.all()[0].load(&[0.0; 6]).unwrap();
        c.load_model(&other, Weights::Averaged).unwrap();
        for (a, b) in s.all().iter().zip(other.all()) {
            let bits = |p: &crate::tape::Param| p.value().f32s().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(a), bits(b));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    /// Bit-exactly, with sizes after which the next tensor would be misaligned. No other tensors may be bf16.
    #[test]
    fn state_in_bf16_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let device = Device::cpu();
        let numbers = [0x0001, 0x8000, 0x3F81, 0x7F7F, 0x0080].map(bf16::from_bits);
        let flat = |n: usize| Tensor::from_slice(&device, &[n], &numbers[..n]).unwrap();
        let weight = Tensor::from_slice(&device, &[3], &[0.1f32, -7.0, 1.0e-42]).unwrap();
        let mut tensors: Vec<(String, Tensor)> = ["momentum.a", "exp_avg.a", "exp_avg_sq.a"]
            .into_iter()
            .zip([5, 3, 1])
            .map(|(name, n)| (name.into(), flat(n)))
            .collect();
        tensors.push(("ema.a".into(), weight.clone()));
        save(&path, &meta(), &tensors).unwrap();
        let c = Checkpoint::load(&path).unwrap();
        for (name, t) in &tensors[..3] {
            let want: Vec<f32> = t.slice::<bf16>().iter().map(|v| v.to_f32()).collect();
            assert_eq!(c.values(name, t.numel()).unwrap(), want);
        }
        assert_eq!(c.values("ema.a", 3).unwrap(), weight.f32s());
        tensors[1].1.slice_mut::<bf16>()[2] = bf16::NAN;
        save(&path, &meta(), &tensors).unwrap();
        let spoilt = Checkpoint::load(&path).unwrap().values("exp_avg.a", 3).unwrap_err().to_string();
        assert!(spoilt.contains("exp_avg.a holds NaN"), "{spoilt}");
        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in file.tensors() {
            let want = if name == "ema.a" { Dtype::F32 } else { Dtype::BF16 };
            assert_eq!(view.dtype(), want, "{name}");
            let at = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert!(at.is_multiple_of(want.bitsize() / 8), "{name} begins at {at}");
        }
        for name in ["a", "ema.a", "momentum", "exp_avg_sqa"] {
            save(&path, &meta(), &[(name.into(), flat(5))]).unwrap();
            let error = Checkpoint::load(&path).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}: want F32, got BF16")), "{error}");
        }
    }

    #[test]
    fn truncated_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        save(&path, &meta(), &state(&store(2))).unwrap();
        let bytes = fs::read(&path).unwrap();
        for n in [0, 4, 9, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..n]).unwrap();
            let e = Checkpoint::load(&path).map(|_| ()).unwrap_err().to_string();
            assert!(e.contains("c.safetensors") && e.contains("truncated"), "{n}: {e}");
        }
        // One flipped bit in the weights, or in the metadata.
        let said = bytes.windows(8).position(|w| w == b"name = \\").unwrap();
        for (place, bit) in [(bytes.len() - 1, 0x80), (bytes.len() - 30, 1), (said + 1, 1)] {
            let mut damaged = bytes.clone();
            damaged[place] ^= bit;
            fs::write(&path, &damaged).unwrap();
            let e = Checkpoint::load(&path).map(|_| ()).unwrap_err().to_string();
            assert!(e.contains("c.safetensors") && e.contains("checksum"), "{place}: {e}");
        }
        let foreign = b"\x02\0\0\0\0\0\0\0{}";
        fs::write(&path, foreign).unwrap();
        assert!(Checkpoint::load(&path).map(|_| ()).unwrap_err().to_string().contains("no upres metadata"));
        assert!(Checkpoint::load(&dir.path().join("none")).is_err());
    }

    #[test]
    fn mismatches_are_named_and_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        save(&path, &meta(), &state(&store(2))).unwrap();
        let c = Checkpoint::load(&path).unwrap();
        let mut other = ParamStore::new(&Device::cpu());
        other.builder(1).param("conv.weight", Role::Weight, &[2, 4], Init::Constant(5.0)).unwrap();
        let e = c.load_model(&other, Weights::Trained).unwrap_err().to_string();
        assert!(e.contains("another model") && e.contains("conv.weight is [2, 3], the model wants [2, 4]"), "{e}");
        assert_eq!(other.all()[0].value().f32s(), [5.0; 8]);
        let mut head = ParamStore::new(&Device::cpu());
        head.builder(1).sub("x").param("fc_cls.bias", Role::Bias, &[6], Init::Constant(0.0)).unwrap();
        let e = c.load_model(&head, Weights::Trained).unwrap_err().to_string();
        assert!(e.contains("the checkpoint has 2 classes, the recipe 5"), "{e}");
    }

    #[test]
    fn a_full_disk_leaves_the_old_checkpoint() {
        /// Fails after some bytes, like a full disk.
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
                self.0 = self.0.checked_sub(b.len()).ok_or(std::io::ErrorKind::StorageFull)?;
                Ok(b.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let tensors = state(&store(2));
        for room in [0, 8, 100, 300] {
            let e = write_to(&mut Full(room), &meta(), &tensors).unwrap_err();
            assert_eq!(e.kind(), std::io::ErrorKind::StorageFull);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        save(&path, &meta(), &tensors).unwrap();
        let before = fs::read(&path).unwrap();
        // A target that cannot be replaced takes the same path as any other failure.
        let blocked = dir.path().join("folder");
        fs::create_dir_all(blocked.join("not empty")).unwrap();
        assert!(save(&blocked, &meta(), &tensors).is_err());
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
    }
}
