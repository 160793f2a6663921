//! Readers of tests/fixtures (described in tests/fixtures/README.md) and comparisons with the stored numbers.
//!
//! All tensors in the files are in torch's order (NCHW, OIHW); upres is NHWC and `[O,KH,KW,I]`. [`nchw_to_nhwc`]
//! converts activations and weights alike, because only the last three of the four axes move.
//!
//! This module does not build models: it knows slices and names, and no tensor type of the library.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::numbers::root;
pub use super::numbers::{nchw_to_nhwc, nhwc_to_nchw};

/// FNV-1a, 64 bits.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// The hash rule: numbers in (-1, 1) that follow from a name, 24 bits each and therefore exact in f32. The `i`-th
/// number belongs to element `i`.
pub fn hash_uniform(name: &str) -> impl Iterator<Item = f64> {
    let h = fnv1a(name.as_bytes());
    (1_u64..).map(move |i| {
        let mut z = h.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let m = (z >> 40) as i64;
        (2 * m + 1 - (1 << 24)) as f64 / f64::from(1 << 24)
    })
}

/// `n` elements of the tensor `name` by the hash rule, in torch's order.
pub fn hash_tensor(name: &str, n: usize, scale: f64, offset: f64) -> Vec<f32> {
    hash_uniform(name).take(n).map(|u| (offset + scale * u) as f32).collect()
}

/// `sum_i x_i u_i`, where `u` follows from the name `"dot:" + name`: one number that depends on every element and its
/// position.
pub fn hash_dot(name: &str, x: &[f32]) -> f64 {
    x.iter().zip(hash_uniform(&format!("dot:{name}"))).map(|(&x, u)| f64::from(x) * u).sum()
}

/// The rule by which one weight tensor is made from its name.
#[derive(Clone, Debug)]
pub struct WeightRule {
    /// Shape in torch's order.
    pub shape: Vec<usize>,
    /// Factor of the uniform number.
    pub scale: f64,
    /// Added after scaling.
    pub offset: f64,
}

/// Parameters and batch-norm statistics of a detector under mmdetection's names.
#[derive(Clone, Debug)]
pub struct WeightRules(pub BTreeMap<String, WeightRule>);

impl WeightRules {
    /// Reads `tests/fixtures/detectors/<detector>_weights.json`.
    pub fn open(detector: &str) -> Self {
        let path = fixture_dir().join(format!("detectors/{detector}_weights.json"));
        let Value::Object(entries) = read_json(&path) else { panic!("{}: want an object", path.display()) };
        let rule = |v: &Value| WeightRule {
            shape: usizes(&v["shape"]),
            scale: v["scale"].as_f64().expect("scale"),
            offset: v["offset"].as_f64().expect("offset"),
        };
        WeightRules(entries.iter().map(|(name, v)| (name.clone(), rule(v))).collect())
    }

    /// The tensor in torch's order.
    pub fn tensor(&self, name: &str) -> Vec<f32> {
        let rule = self.0.get(name).unwrap_or_else(|| panic!("no weight rule for {name}"));
        hash_tensor(name, rule.shape.iter().product(), rule.scale, rule.offset)
    }

    /// The tensor in upres's order: convolutions `[O,KH,KW,I]`, everything else as it is (a linear layer on flattened
    /// features needs [`nchw_to_nhwc`] with the shape of the features).
    pub fn tensor_nhwc(&self, name: &str) -> Vec<f32> {
        let x = self.tensor(name);
        match self.0[name].shape[..] {
            [o, i, kh, kw] => nchw_to_nhwc(&x, [o, i, kh, kw]),
            _ => x,
        }
    }
}

/// One `<name>.safetensors` with its `<name>.json`.
pub struct Fixture {
    path: PathBuf,
    bytes: Vec<u8>,
    json: Value,
}

impl Fixture {
    /// Opens `tests/fixtures/<name>.{safetensors,json}`, `name` being "detectors/faster", say.
    pub fn open(name: &str) -> Self {
        let path = fixture_dir().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let json = read_json(&path.with_extension("json"));
        Fixture { path, bytes, json }
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.json["tensors"].as_object().expect("tensors").keys().cloned().collect()
    }

    /// A value of the json file besides the tensors ("pretrain.losses", "metas").
    pub fn value(&self, key: &str) -> &Value {
        self.json.get(key).unwrap_or_else(|| panic!("{}: no value {key}", self.path.display()))
    }

    /// A number, or the sum of a list of numbers (losses by level), under a key of a json value.
    pub fn number(&self, key: &str, field: &str) -> f64 {
        match &self.value(key)[field] {
            Value::Array(a) => a.iter().map(|v| v.as_f64().expect("number")).sum(),
            v => v.as_f64().unwrap_or_else(|| panic!("{key}.{field}: not a number")),
        }
    }

    /// Shape of the full tensor, in torch's order.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        usizes(&self.entry(name)["shape"])
    }

    /// 1 if the tensor is stored whole; k if only its elements 0, k, 2k … are stored.
    pub fn stride(&self, name: &str) -> usize {
        self.entry(name)["stride"].as_u64().expect("stride") as usize
    }

    /// Element type as numpy names it: float32, int32 or uint8.
    pub fn dtype(&self, name: &str) -> String {
        self.entry(name)["dtype"].as_str().expect("dtype").to_owned()
    }

    /// The stored elements as f32; all elements if [`Fixture::stride`] is 1.
    pub fn stored_f32(&self, name: &str) -> Vec<f32> {
        self.elements(name, Dtype::F32, f32::from_le_bytes)
    }

    /// A whole f32 tensor in torch's order.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        assert_eq!(self.stride(name), 1, "{name} is stored in part: use compare()");
        self.stored_f32(name)
    }

    /// A whole `[N,C,H,W]` tensor as `[N,H,W,C]`, with its NCHW shape.
    pub fn f32_nhwc(&self, name: &str) -> (Vec<f32>, [usize; 4]) {
        let shape: [usize; 4] =
            self.shape(name).try_into().unwrap_or_else(|s| panic!("{name}: rank 4 wanted, is {s:?}"));
        (nchw_to_nhwc(&self.f32(name), shape), shape)
    }

    /// A whole i32 tensor.
    pub fn i32(&self, name: &str) -> Vec<i32> {
        self.elements(name, Dtype::I32, i32::from_le_bytes)
    }

    /// A whole tensor of bytes (booleans are 0 and 1).
    pub fn u8(&self, name: &str) -> Vec<u8> {
        self.elements(name, Dtype::U8, |[b]| b)
    }

    /// A whole tensor of 0 and 1 that is stored as numpy's `packbits` of its elements in C order.
    pub fn bits(&self, name: &str) -> Vec<u8> {
        let n: usize = self.shape(name).iter().product();
        let bytes = self.u8(name);
        (0..n).map(|i| bytes[i / 8] >> (7 - i % 8) & 1).collect()
    }

    /// Compares a full tensor in torch's order with the stored one. Every stored element must be within
    /// `rel * (|want| + rms)`; the l2 norm and the hash dot product, which see every element, within `rel * l2`. The
    /// root mean square is part of the tolerance because a sum that nearly cancels carries the rounding of its terms.
    pub fn compare(&self, name: &str, got: &[f32], rel: f64) -> Result<(), String> {
        let (shape, stride, entry) = (self.shape(name), self.stride(name), self.entry(name));
        let n: usize = shape.iter().product();
        if got.len() != n {
            return Err(format!("{name}: want {shape:?}, got {} elements", got.len()));
        }
        let l2 = entry["sq_sum"].as_f64().expect("sq_sum").sqrt();
        let rms = l2 / (n.max(1) as f64).sqrt();
        let mut worst = (0.0, 0, 0.0, 0.0); // excess over the tolerance, index, got, want
        for (k, want) in self.stored_f32(name).into_iter().enumerate() {
            let (got, want) = (f64::from(got[k * stride]), f64::from(want));
            let share = (got - want).abs() / (rel * (want.abs() + rms)).max(f64::MIN_POSITIVE);
            if share.is_nan() || share > worst.0 {
                worst = (if share.is_nan() { f64::INFINITY } else { share }, k * stride, got, want);
            }
        }
        if worst.0 > 1.0 {
            let (share, i, got, want) = worst;
            return Err(format!(
                "{name}[{i}] (torch's order, {shape:?}): got {got}, want {want}, rms {rms:.3e}: {share:.2} x \
                 the tolerance {rel:e}"
            ));
        }
        let got_l2 = got.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if (got_l2 - l2).abs() > rel * l2 {
            return Err(format!("{name}: l2 {got_l2}, want {l2}: relative difference above {rel:e}"));
        }
        if let Some(want) = entry["hash_dot"].as_f64() {
            let dot = hash_dot(name, got);
            if (dot - want).abs() > rel * l2 {
                return Err(format!("{name}: hash dot {dot}, want {want}: differs by more than {rel:e} x l2 ({l2})"));
            }
        }
        Ok(())
    }

    /// Like [`Fixture::compare`], for a tensor in upres's order.
    pub fn compare_nhwc(&self, name: &str, got: &[f32], rel: f64) -> Result<(), String> {
        let shape: [usize; 4] =
            self.shape(name).try_into().unwrap_or_else(|s| panic!("{name}: rank 4 wanted, is {s:?}"));
        if got.len() != shape.iter().product::<usize>() {
            return Err(format!("{name}: want {shape:?} (NCHW), got {} elements", got.len()));
        }
        self.compare(name, &nhwc_to_nchw(got, shape), rel)
    }

    /// The gradient summaries under the key `<mode>.grad_summary[_f64]`, by parameter; `None` for a frozen parameter.
    pub fn grad_summary(&self, key: &str) -> BTreeMap<String, Option<GradSummary>> {
        let Value::Object(entries) = self.value(key) else { panic!("{key}: want an object") };
        let read = |v: &Value| {
            let v = v.as_array()?;
            let at = |i: usize| v[i].as_f64().expect("number");
            Some(GradSummary { l2: at(0), sum: at(1), dot: at(2) })
        };
        entries.iter().map(|(name, v)| (name.clone(), read(v))).collect()
    }

    fn entry(&self, name: &str) -> &Value {
        self.json["tensors"].get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.path.display()))
    }

    fn elements<T, const B: usize>(&self, name: &str, dtype: Dtype, read: fn([u8; B]) -> T) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.path.display()));
        assert_eq!(view.dtype(), dtype, "{name}");
        view.data().chunks_exact(B).map(|b| read(b.try_into().expect("chunk"))).collect()
    }
}

/// The stored summary of a parameter's gradient.
#[derive(Clone, Copy, Debug)]
pub struct GradSummary {
    /// Euclidean norm.
    pub l2: f64,
    /// Sum of all elements.
    pub sum: f64,
    /// [`hash_dot`] with the parameter's name.
    pub dot: f64,
}

impl GradSummary {
    /// The summary of a gradient in torch's order.
    pub fn of(param: &str, grad: &[f32]) -> Self {
        let l2 = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        GradSummary { l2, sum: grad.iter().map(|&g| f64::from(g)).sum(), dot: hash_dot(param, grad) }
    }

    /// The errors `|l2 - want.l2|` and `|dot - want.dot|`, both relative to the wanted l2. The fixtures state their own
    /// noise (`noise.f64`) in the same measures.
    pub fn relative_errors(&self, want: &GradSummary) -> (f64, f64) {
        let scale = want.l2.max(f64::MIN_POSITIVE);
        ((self.l2 - want.l2).abs() / scale, (self.dot - want.dot).abs() / scale)
    }
}

fn fixture_dir() -> PathBuf {
    Path::new(&root()).join("tests/fixtures")
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn usizes(v: &Value) -> Vec<usize> {
    v.as_array().expect("array").iter().map(|x| x.as_u64().expect("count") as usize).collect()
}
