//! The reference detector in upres: the recipe's model with the fixtures' weights, its inputs, and measures of error.

use upres::data::Shape;
use upres::detection::anchors::Anchors;
use upres::device::Device;
use upres::engine::StageSetup;
use upres::models::faster_rcnn::FasterRcnn;
use upres::models::rpn::{Proposals, RpnOutput};
use upres::models::{Heads, HostBatch, Inputs, Model, PixelStats};
use upres::nn::ParamStore;
use upres::recipe::Recipe;
use upres::tape::{Param, Role, Tape};
use upres::tensor::{Element, Tensor};

use crate::support::fixtures::*;

pub const CLASSES: usize = 80;
pub const PIXELS: PixelStats = PixelStats { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };
/// Height and width of the fixtures' batch of two.
pub const SIZE: [usize; 2] = [160, 192];
/// Slots for ground truth; image 1 uses fewer.
pub const MAX_GT: usize = 5;

/// The paper's recipe with the one deviation of the fixtures: 300 proposals in evaluation.
pub fn recipe() -> Recipe {
    recipe_of("faster")
}

/// The paper's recipe of one of the fixtures' detectors, with their deviations: 300 proposals, no drop path.
pub fn recipe_of(detector: &str) -> Recipe {
    let (name, deviations): (_, &[&str]) = match detector {
        "faster" => ("faster_rcnn_r50_fpn", &["model.rpn.test_max=300"]),
        "cascade" => ("cascade_rcnn_r50_fpn", &["model.rpn.test_max=300"]),
        "mask" => ("mask_rcnn_r50_fpn", &["model.rpn.test_max=300"]),
        "mask_swin" => ("mask_rcnn_swin_t_fpn", &["model.rpn.test_max=300", "model.backbone.drop_path=0"]),
        "retinanet" => ("retinanet_r50_fpn", &[]),
        _ => panic!("no fixtures of {detector}"),
    };
    let path = format!("{}/recipes/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let deviations: Vec<_> = deviations.iter().map(|d| d.parse().unwrap()).collect();
    Recipe::read(path, &deviations).unwrap()
}

/// The four dimensions in torch's order of parameters that upres stores in another order: convolutions; the layer on
/// flattened RoI features, whose columns torch orders as C, H, W; and Swin's patch merging, whose channels are those of
/// `unfold`.
fn torch_shape(name: &str, shape: &[usize]) -> Option<[usize; 4]> {
    match *shape {
        [o, i, kh, kw] => Some([o, i, kh, kw]),
        [o, columns] if name.ends_with("shared_fcs.0.weight") => Some([o, columns / 49, 7, 7]),
        [o, columns] if name.ends_with("downsample.reduction.weight") => Some([o, columns / 4, 2, 2]),
        [columns] if name.contains("downsample.norm.") => Some([1, columns / 4, 2, 2]),
        _ => None,
    }
}

/// A stage of the recipe by name.
pub fn stage(recipe: &Recipe, name: &str) -> StageSetup {
    let stage = recipe.stages.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no stage {name}"));
    let bucket = vec![Shape { height: SIZE[0] as u32, width: SIZE[1] as u32 }];
    StageSetup::new(stage, bucket.clone(), bucket, MAX_GT)
}

/// A detector and the rules of its weights.
pub struct Reference {
    pub device: Device,
    pub store: ParamStore,
    pub model: Model,
    rules: WeightRules,
}

impl Reference {
    pub fn new(recipe: &Recipe) -> Self {
        Self::of("faster", recipe)
    }

    pub fn of(detector: &str, recipe: &Recipe) -> Self {
        let device = Device::cpu();
        let mut store = ParamStore::new(&device);
        let model = Model::new(&mut store.builder(0), &recipe.model, CLASSES, PIXELS).unwrap();
        let rules = WeightRules::open(detector);
        let ours: Vec<_> = store.all().iter().map(Param::name).collect();
        let missing: Vec<_> = rules.0.keys().filter(|k| !ours.contains(&k.as_str())).collect();
        assert!(missing.is_empty() && ours.len() == rules.0.len(), "parameters differ: {missing:?}");
        Reference { device, store, model, rules }
    }

    /// The heads of Faster R-CNN.
    pub fn faster(&self) -> &FasterRcnn {
        let Heads::Faster(heads) = &self.model.heads else { panic!("not Faster R-CNN") };
        heads
    }

    /// Sets every parameter and statistic to the fixtures' value.
    pub fn load_weights(&self) {
        for p in self.store.all() {
            p.load(&self.weight(p.name())).unwrap();
        }
    }

    /// A weight in upres's order.
    pub fn weight(&self, name: &str) -> Vec<f32> {
        let x = self.rules.tensor(name);
        torch_shape(name, &self.rules.0[name].shape).map_or_else(|| x.clone(), |shape| nchw_to_nhwc(&x, shape))
    }

    /// A gradient in torch's order.
    pub fn to_torch(&self, name: &str, x: &[f32]) -> Vec<f32> {
        torch_shape(name, &self.rules.0[name].shape).map_or_else(|| x.to_vec(), |shape| nhwc_to_nchw(x, shape))
    }
}

/// The fixtures' batch: sizes, scales, ground truth (of the first image only, if `objects_in_second` is false),
/// anchors.
pub fn inputs(device: &Device, recipe: &Recipe, objects_in_second: bool) -> Inputs {
    let batch = Fixture::open("detectors/inputs");
    let [h, w] = SIZE;
    let number = |i: usize, key: &str, at: usize| batch.value("metas")[i][key][at].as_f64().unwrap() as f32;
    let two = |i: usize, key: &str| [number(i, key, 0), number(i, key, 1)];
    let (mut boxes, mut labels, mut count) = (vec![0.0; 2 * MAX_GT * 4], vec![-1; 2 * MAX_GT], vec![0; 2]);
    for i in 0..if objects_in_second { 2 } else { 1 } {
        let (b, l) = (batch.f32(&format!("gt.{i}.boxes")), batch.i32(&format!("gt.{i}.labels")));
        boxes[i * MAX_GT * 4..][..b.len()].copy_from_slice(&b);
        labels[i * MAX_GT..][..l.len()].copy_from_slice(&l);
        count[i] = l.len() as i32;
    }
    let anchors = Anchors::new(device, &recipe.model.anchors(), h, w).unwrap();
    let room = if recipe.model.mask_size().is_some() { 4096 } else { 0 };
    let (mut runs, mut offsets) = (vec![i32::MAX; 2 * room], vec![0; 2 * (MAX_GT + 1)]);
    for i in 0..if room > 0 { 2 } else { 0 } {
        let masks = batch.bits(&format!("gt.{i}.masks_packed"));
        let mut used = 0;
        for g in 0..MAX_GT {
            if let Some(mask) = masks.get(g * h * w..(g + 1) * h * w) {
                let of_row = |y: usize| runs_of(&mask[y * w..][..w], y * w);
                for end in (0..h).flat_map(of_row) {
                    runs[i * room + used] = end;
                    used += 1;
                }
            }
            offsets[i * (MAX_GT + 1) + g + 1] = used as i32;
        }
    }
    let mut inputs = Inputs::new(device, 2, h, w, MAX_GT, room, anchors).unwrap();
    inputs
        .load(&HostBatch {
            images: &vec![0; 2 * h * w * 3],
            sizes: &[0, 1].map(|i| {
                let ([h, w], [pad_h, pad_w]) = (two(i, "img_shape"), two(i, "pad_shape"));
                [h, w, pad_h, pad_w]
            }),
            scale: &[0, 1].map(|i| two(i, "scale_factor")),
            gt_boxes: &boxes,
            gt_labels: &labels,
            gt_count: &count,
            mask_runs: &runs,
            mask_offsets: &offsets,
        })
        .unwrap();
    inputs
}

/// The begin and end of each run of set pixels in a row.
fn runs_of(row: &[u8], start: usize) -> Vec<i32> {
    let at = |x: usize| x > 0 && x <= row.len() && row[x - 1] != 0;
    (0..=row.len()).filter(|&x| at(x) != (x < row.len() && row[x] != 0)).map(|x| (start + x) as i32).collect()
}

/// The normalised image `[2,H,W,3]`.
pub fn image(device: &Device) -> Tensor {
    let (x, [n, c, h, w]) = Fixture::open("detectors/inputs").f32_nhwc("image");
    tensor(device, &[n, h, w, c], &x)
}

pub fn tensor<T: Element>(device: &Device, shape: &[usize], data: &[T]) -> Tensor {
    Tensor::from_slice(device, shape, data).unwrap()
}

/// The proposals of both images, stored as `<key>.<image>.bboxes`.
pub fn proposals(device: &Device, fixture: &Fixture, key: &str) -> Proposals {
    let each = [0, 1].map(|i| fixture.f32(&format!("{key}.{i}.bboxes")));
    let n = each.iter().map(|b| b.len() / 4).max().unwrap();
    let (mut boxes, mut valid) = (vec![0.0; 8 * n], vec![-1; 2 * n]);
    for (i, b) in each.iter().enumerate() {
        boxes[4 * i * n..][..b.len()].copy_from_slice(b);
        valid[i * n..][..b.len() / 4].fill(1);
    }
    Proposals {
        boxes: tensor(device, &[2, n, 4], &boxes),
        logits: tensor(device, &[2, n], &vec![0.0f32; 2 * n]), // the second stage does not look at them
        valid: tensor(device, &[2, n], &valid),
    }
}

/// The raw head outputs of `<mode>.rpn_{cls,reg}.<level>`, which must be stored whole.
pub fn rpn_output(tape: &mut Tape, fixture: &Fixture, mode: &str) -> RpnOutput {
    let device = tape.device().clone();
    let mut all = |name: &str, c: usize| {
        let levels: Vec<_> = (0..5).map(|l| fixture.f32_nhwc(&format!("{mode}.{name}.{l}"))).collect();
        let mut rows: Vec<f32> = Vec::new();
        for image in 0..2 {
            levels.iter().for_each(|(x, _)| rows.extend(&x[image * x.len() / 2..][..x.len() / 2]));
        }
        let x = tensor(&device, &[2, rows.len() / 2 / c, c], &rows);
        tape.constant(x)
    };
    RpnOutput { logits: all("rpn_cls", 1), deltas: all("rpn_reg", 4) }
}

/// Level `level` of `[B,N,c]` rows, NHWC.
pub fn level_of(rows: &Tensor, sizes: &[usize], level: usize) -> Vec<f32> {
    let (n, c) = (rows.dim(1), rows.dim(2));
    let start: usize = sizes[..level].iter().sum();
    rows.f32s().chunks(n * c).flat_map(|image| image[start * c..][..sizes[level] * c].to_vec()).collect()
}

/// Whether the fixtures name the parameter as a batch norm's.
pub fn is_norm(name: &str) -> bool {
    name.split('.').any(|part| part.starts_with("bn")) || name.contains("downsample.1.")
}

/// Whether a parameter can have a gradient.
pub fn is_weight(p: &Param) -> bool {
    p.role() != Role::Statistic
}

/// The larger number, or NaN if one is NaN.
fn max_or_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Collects the errors of many tensors against one tolerance, and prints them.
pub struct Errors {
    what: &'static str,
    tolerance: f64,
    seen: Vec<(f64, String)>,
}

impl Errors {
    pub fn new(what: &'static str, tolerance: f64) -> Self {
        Errors { what, tolerance, seen: Vec::new() }
    }

    /// Adds an error that was measured elsewhere.
    pub fn add(&mut self, name: &str, error: f64) {
        self.seen.push((if error.is_nan() { f64::INFINITY } else { error }, name.to_string()));
    }

    /// Adds the largest difference of a stored element, relative to `|want| + rms`.
    pub fn tensor(&mut self, fixture: &Fixture, name: &str, got: &[f32]) {
        let (want, stride) = (fixture.stored_f32(name), fixture.stride(name));
        assert_eq!(got.len().div_ceil(stride), want.len(), "{name}: number of elements");
        let rms = (want.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
        let got = got.iter().step_by(stride);
        let worst = got.zip(&want).map(|(&g, &w)| f64::from(g - w).abs() / (f64::from(w).abs() + rms));
        self.add(name, worst.fold(0.0, max_or_nan));
    }

    /// Like [`Errors::tensor`] for an NHWC tensor; also compares the sums over the whole tensor.
    pub fn nhwc(&mut self, fixture: &Fixture, name: &str, got: &[f32]) {
        let shape: [usize; 4] = fixture.shape(name).try_into().unwrap();
        let got = nhwc_to_nchw(got, shape);
        self.tensor(fixture, name, &got);
        if let Err(e) = fixture.compare(name, &got, self.tolerance) {
            panic!("{}: {e}", self.what);
        }
    }

    /// Adds the largest absolute difference.
    pub fn slices(&mut self, name: &str, got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len(), "{name}: number of elements");
        let worst = got.iter().zip(want).map(|(&g, &w)| f64::from(g - w).abs());
        self.add(name, worst.fold(0.0, max_or_nan));
    }

    pub fn median(&mut self) -> f64 {
        self.seen.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.seen[self.seen.len() / 2].0
    }

    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Panics if an error is above the tolerance.
    #[track_caller]
    pub fn check(mut self) {
        let median = self.median();
        let (worst, name) = self.seen.last().expect("something was compared");
        let Errors { what, tolerance, .. } = self;
        eprintln!("{what}: worst {worst:.2e} ({name}), median {median:.2e}, tolerance {tolerance:.0e}");
        let bad: Vec<_> = self.seen.iter().rev().take_while(|(e, _)| *e > tolerance).take(10).collect();
        assert!(bad.is_empty(), "{what}: above {tolerance:e}: {bad:?}");
    }
}
