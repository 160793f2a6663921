//! Weights of torchvision and mmdetection: names and shapes are theirs, and exported weights come back bit for bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::fixtures::{WeightRules, hash_tensor};
use serde_json::Value;
use upres::device::Device;
use upres::models::config::{BackboneKind, BoxHeadKind, Detector, FpnExtra, ModelConfig};
use upres::models::{Model, PixelStats};
use upres::nn::ParamStore;
use upres::recipe::Recipe;
use upres::weights::{
    ForeignData, ForeignTensor, Format, Keep, Loaded, Named, Origin, Translator, export, is_foreign, load, write,
};

pub const CLASSES: usize = 5;

/// The smallest detector of its kind that both programs can express.
pub fn small(detector: Detector, kind: BackboneKind) -> ModelConfig {
    let mut cfg = ModelConfig::paper(detector);
    (cfg.backbone.kind, cfg.backbone.width) = (kind, 0.125);
    (cfg.fpn.channels, cfg.rpn.channels, cfg.retina_head.channels, cfg.mask_head.channels) = (8, 8, 8, 8);
    (cfg.box_head.kind, cfg.box_head.fc_channels, cfg.box_head.pool) = (BoxHeadKind::Shared2Fc, 16, 3);
    cfg.fpn.extra_relu = detector == Detector::RetinaNet;
    cfg
}

pub fn model(device: &Device, cfg: &ModelConfig, classes: usize) -> ParamStore {
    let mut store = ParamStore::new(device);
    let pixels = PixelStats { mean: [0.0; 3], std: [1.0; 3] };
    Model::new(&mut store.builder(1), cfg, classes, pixels).unwrap();
    store
}

/// A model in which all elements differ.
pub fn filled(cfg: &ModelConfig, classes: usize) -> ParamStore {
    let store = model(&Device::cpu(), cfg, classes);
    store.all().iter().for_each(|p| p.load(&hash_tensor(p.name(), p.numel(), 1.0, 0.0)).unwrap());
    store
}

pub fn bits(store: &ParamStore) -> BTreeMap<String, Vec<u32>> {
    let of = |p: &upres::tape::Param| p.value().f32s().iter().map(|v| v.to_bits()).collect();
    store.all().iter().map(|p| (p.name().to_string(), of(p))).collect()
}

pub fn tensors(format: Format, cfg: &ModelConfig, store: &ParamStore) -> Vec<ForeignTensor> {
    let named = |p: &upres::tape::Param| {
        let values = p.value().f32s().to_vec();
        Named { name: p.name().to_string(), shape: p.shape(), values }
    };
    export(Path::new("x"), format, cfg, store.all().iter().map(named)).unwrap().tensors
}

fn save(path: &Path, tensors: &[ForeignTensor]) -> PathBuf {
    let mut bytes = Vec::new();
    write(&mut bytes, tensors, &[]).unwrap();
    fs::write(path, bytes).unwrap();
    path.to_path_buf()
}

/// Loads a file into a fresh model.
pub fn read(path: &Path, cfg: &ModelConfig, classes: usize) -> (upres::Result<Loaded>, ParamStore) {
    let store = model(&Device::cpu(), cfg, classes);
    (load(path, cfg, &store, Origin::default()), store)
}

const DETECTORS: [Detector; 4] = Detector::ALL;
const BACKBONES: [BackboneKind; 3] = [BackboneKind::Resnet18, BackboneKind::Resnet50, BackboneKind::SwinT];

#[test]
fn what_goes_out_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let mut done = 0;
    for (format, detector, kind) in
        Format::ALL.iter().flat_map(|f| DETECTORS.iter().flat_map(move |d| BACKBONES.iter().map(move |b| (*f, *d, *b))))
    {
        if format == Format::Torchvision && (detector == Detector::CascadeRcnn || kind.is_swin()) {
            continue; // it has none: `obstacles`
        }
        for extra in [FpnExtra::ConvC5, FpnExtra::ConvP5] {
            let mut cfg = small(detector, kind);
            if detector == Detector::RetinaNet {
                cfg.fpn.extra = extra;
            } else if format == Format::Mmdetection && extra == FpnExtra::ConvP5 {
                cfg.box_head.kind = BoxHeadKind::Shared4Conv1Fc;
            }
            let store = filled(&cfg, CLASSES);
            save(&path, &tensors(format, &cfg, &store));
            assert!(is_foreign(&path).unwrap());
            let (loaded, other) = read(&path, &cfg, CLASSES);
            assert!(!loaded.unwrap().backbone_only);
            assert!(bits(&store) == bits(&other), "{format} {detector:?} {kind:?}");
            done += 1;
        }
    }
    assert_eq!(done, 2 * (12 + 6));
}

/// Names and shapes as "name shape" lines.
fn listed(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Vec<String> {
    let dims = |s: &[usize]| s.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("x");
    let mut rows: Vec<String> = tensors.into_iter().map(|(n, s)| format!("{n} {}", dims(&s))).collect();
    rows.sort();
    rows
}

fn places(translator: &Translator, store: &ParamStore) -> Vec<String> {
    let of = |p: &upres::tape::Param| translator.place(p.name(), &p.shape()).map(|t| (t.name, t.placement.shape));
    listed(store.all().iter().filter_map(of))
}

#[test]
fn names_and_shapes_are_those_of_mmdetection() {
    for (file, recipe) in [
        ("faster", "faster_rcnn_r50_fpn"),
        ("cascade", "cascade_rcnn_r50_fpn"),
        ("mask", "mask_rcnn_r50_fpn"),
        ("mask_swin", "mask_rcnn_swin_t_fpn"),
        ("retinanet", "retinanet_r50_fpn"),
    ] {
        let recipe = format!("{}/recipes/{recipe}.toml", env!("CARGO_MANIFEST_DIR"));
        let cfg = Recipe::read(recipe, &[]).unwrap().model;
        let store = model(&Device::cpu().planner(), &cfg, 80);
        let want = listed(WeightRules::open(file).0.into_iter().map(|(n, rule)| (n, rule.shape)));
        assert!(places(&Translator::new(Format::Mmdetection, &cfg), &store) == want, "{file}");
    }
}

/// Settings with which a detector equals torchvision's.
fn as_torchvision(detector: Detector) -> ModelConfig {
    let mut cfg = ModelConfig::paper(detector);
    cfg.box_head.kind = BoxHeadKind::Shared2Fc;
    if detector == Detector::RetinaNet {
        (cfg.fpn.extra, cfg.fpn.extra_relu) = (FpnExtra::ConvP5, true);
    }
    cfg
}

#[test]
fn names_and_shapes_are_those_of_torchvision() {
    let path = format!("{}/tests/fixtures/weights/torchvision.json", env!("CARGO_MANIFEST_DIR"));
    let all: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let want = |model: &str, keep: &dyn Fn(&str) -> bool| {
        let rows = all[model].as_array().unwrap().iter().map(|r| r.as_str().unwrap().to_string());
        let mut rows: Vec<String> = rows.filter(|r| keep(r)).collect();
        rows.sort();
        rows
    };
    for (name, detector) in [
        ("fasterrcnn_resnet50_fpn", Detector::FasterRcnn),
        ("maskrcnn_resnet50_fpn", Detector::MaskRcnn),
        ("retinanet_resnet50_fpn", Detector::RetinaNet),
    ] {
        let cfg = as_torchvision(detector);
        let store = model(&Device::cpu().planner(), &cfg, 90);
        assert_eq!(places(&Translator::new(Format::Torchvision, &cfg), &store), want(name, &|_| true), "{name}");
    }
    for (name, kind) in
        [("resnet18", BackboneKind::Resnet18), ("resnet50", BackboneKind::Resnet50), ("swin_t", BackboneKind::SwinT)]
    {
        let mut cfg = ModelConfig::default();
        cfg.backbone.kind = kind;
        let store = model(&Device::cpu().planner(), &cfg, 90);
        let own = |r: &str| !["fc.", "head.", "norm."].iter().any(|start| r.starts_with(start));
        assert_eq!(places(&Translator::classifier(&cfg), &store), want(name, &own), "{name}");
    }
}

/// Backbone weights fill only the backbone. The classifier's further layers are ignored, and everything else stays
/// unchanged.
#[test]
fn classifiers_are_backbones() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [BackboneKind::Resnet18, BackboneKind::Resnet50, BackboneKind::SwinT] {
        let cfg = small(Detector::FasterRcnn, kind);
        let (store, fresh) = (filled(&cfg, CLASSES), model(&Device::cpu(), &cfg, CLASSES));
        let translator = Translator::classifier(&cfg);
        let of = |p: &upres::tape::Param| {
            let place = translator.place(p.name(), &p.shape())?;
            let data = ForeignData::F32(place.placement.export(p.value().f32s()));
            Some(ForeignTensor { name: place.name, shape: place.placement.shape, data })
        };
        let mut tensors: Vec<ForeignTensor> = store.all().iter().filter_map(of).collect();
        let end = if kind.is_swin() { "head" } else { "fc" };
        for (name, shape) in [(format!("{end}.weight"), vec![3, 4]), (format!("{end}.bias"), vec![3])] {
            let n = shape.iter().product();
            tensors.push(ForeignTensor { name, shape, data: ForeignData::F32(vec![1.0; n]) });
        }
        let counter = "layer1.0.bn1.num_batches_tracked";
        tensors.push(ForeignTensor { name: counter.into(), shape: vec![], data: ForeignData::I64(vec![7]) });
        let path = save(&dir.path().join("w.safetensors"), &tensors);
        let (loaded, other) = read(&path, &cfg, CLASSES);
        let loaded = loaded.unwrap();
        assert!(loaded.backbone_only && loaded.notes.len() == 1, "{loaded:?}");
        assert!(loaded.notes[0].contains("torchvision") && loaded.notes[0].contains("starts anew"), "{loaded:?}");
        let (want, old) = (bits(&store), bits(&fresh));
        for (name, got) in bits(&other) {
            let filled = name.starts_with("backbone.") && !name.starts_with("backbone.norm");
            assert!(got == if filled { &want } else { &old }[&name], "{kind:?}: {name}");
        }
    }
}

/// Swin weights of the paper's repository and of the classifiers by Swin's authors: other names, and another channel
/// order in patch merging.
#[test]
fn swin_of_its_authors() {
    let dir = tempfile::tempdir().unwrap();
    let cfg = small(Detector::MaskRcnn, BackboneKind::SwinT);
    let store = filled(&cfg, CLASSES);
    let renamed: Vec<ForeignTensor> = tensors(Format::Mmdetection, &cfg, &store)
        .into_iter()
        .map(|mut t| {
            if let (ForeignData::F32(x), true) = (&mut t.data, t.name.contains(".downsample.")) {
                // mmdetection's channel c·4 + kh·2 + kw is their channel (kw·2 + kh)·C + c.
                let (old, width) = (x.clone(), *t.shape.last().unwrap());
                for (i, v) in old.iter().enumerate() {
                    let (row, j) = (i / width, i % width);
                    let (c, kh, kw) = (j / 4, j / 2 % 2, j % 2);
                    x[row * width + (kw * 2 + kh) * (width / 4) + c] = *v;
                }
            }
            for (ours, theirs) in [
                ("backbone.stages.", "backbone.layers."),
                (".attn.w_msa.", ".attn."),
                (".ffn.layers.0.0.", ".mlp.fc1."),
                (".ffn.layers.1.", ".mlp.fc2."),
                ("patch_embed.projection.", "patch_embed.proj."),
            ] {
                t.name = t.name.replace(ours, theirs);
            }
            t
        })
        .collect();
    let path = save(&dir.path().join("paper.safetensors"), &renamed);
    let (loaded, other) = read(&path, &cfg, CLASSES);
    assert!(!loaded.unwrap().backbone_only);
    assert!(bits(&store) == bits(&other));
    let norm = |name: &str| name.starts_with("backbone.norm");
    let backbone = renamed.into_iter().filter(|t| t.name.starts_with("backbone.") && !norm(&t.name));
    let classifier = backbone.map(|t| ForeignTensor { name: t.name.replacen("backbone.", "", 1), ..t });
    let path = save(&dir.path().join("imagenet.safetensors"), &classifier.collect::<Vec<_>>());
    let (loaded, other) = read(&path, &cfg, CLASSES);
    assert!(loaded.unwrap().backbone_only);
    let (want, got) = (bits(&store), bits(&other));
    assert!(got.iter().all(|(n, v)| !n.starts_with("backbone.") || norm(n) || *v == want[n]));
}

/// The names of torchvision's published weights.
#[test]
fn old_names_of_torchvision() {
    let dir = tempfile::tempdir().unwrap();
    let cfg = small(Detector::MaskRcnn, BackboneKind::Resnet18);
    let store = filled(&cfg, CLASSES);
    let mut old = tensors(Format::Torchvision, &cfg, &store);
    for t in &mut old {
        t.name = t.name.replace("rpn.head.conv.0.0.", "rpn.head.conv.");
        for i in 0..4 {
            t.name = t
                .name
                .replace(&format!("roi_heads.mask_head.{i}.0."), &format!("roi_heads.mask_head.mask_fcn{}.", i + 1));
            for block in ["inner_blocks", "layer_blocks"] {
                t.name = t.name.replace(&format!("{block}.{i}.0."), &format!("{block}.{i}."));
            }
        }
    }
    let (loaded, other) = read(&save(&dir.path().join("w.safetensors"), &old), &cfg, CLASSES);
    loaded.unwrap();
    assert!(bits(&store) == bits(&other));
}

/// Predictors with another number of classes stay unchanged; everything else is read.
#[test]
fn another_number_of_classes() {
    let dir = tempfile::tempdir().unwrap();
    for (format, detector) in [
        (Format::Torchvision, Detector::MaskRcnn),
        (Format::Torchvision, Detector::RetinaNet),
        (Format::Mmdetection, Detector::CascadeRcnn),
        (Format::Mmdetection, Detector::RetinaNet),
    ] {
        let cfg = small(detector, BackboneKind::Resnet18);
        let store = filled(&cfg, CLASSES);
        let path = save(&dir.path().join("w.safetensors"), &tensors(format, &cfg, &store));
        let (loaded, other) = read(&path, &cfg, 2);
        let notes = loaded.unwrap().notes;
        assert!(notes[0].contains("its 5 classes are not the 2 here"), "{notes:?}");
        let (want, old, got) = (bits(&store), bits(&model(&Device::cpu(), &cfg, 2)), bits(&other));
        let mut anew = Vec::new();
        for (name, v) in &got {
            if v.len() == want[name].len() {
                assert!(*v == want[name], "{name}");
            } else {
                assert!(*v == old[name], "{name}");
                anew.push(name.as_str());
            }
        }
        // Mask R-CNN skips classes, deltas and masks. Cascade R-CNN skips classes three times; its deltas, which all
        // classes share, are read.
        let want = if detector == Detector::RetinaNet { 2 } else { 6 };
        assert_eq!(anew.len(), want, "{anew:?}");
    }
}

/// Selects some of a file's classes: the rows of the others are left out.
#[test]
fn chosen_classes() {
    let dir = tempfile::tempdir().unwrap();
    let keep = [0, 2, 3];
    for (format, detector) in [
        (Format::Torchvision, Detector::MaskRcnn),
        (Format::Torchvision, Detector::RetinaNet),
        (Format::Mmdetection, Detector::CascadeRcnn),
    ] {
        let cfg = small(detector, BackboneKind::Resnet18);
        let store = filled(&cfg, CLASSES);
        let path = save(&dir.path().join("w.safetensors"), &tensors(format, &cfg, &store));
        let other = model(&Device::cpu(), &cfg, keep.len());
        let origin = Origin { format: Some(format), keep: Some(Keep { classes: &keep, of: CLASSES }) };
        load(&path, &cfg, &other, origin).unwrap();
        for (a, b) in store.all().iter().zip(other.all()) {
            let (a_value, b_value) = (a.value(), b.value());
            let (x, y) = (a_value.f32s(), b_value.f32s());
            let (rows, width) = (a.shape()[0], x.len() / a.shape()[0]);
            let of_class = |each: usize, k: usize| (k * each..(k + 1) * each).collect::<Vec<_>>();
            let picked: Vec<usize> = if a.name().contains(".fc_cls.") {
                vec![0, 2, 3, CLASSES]
            } else if a.name().contains(".fc_reg.") && rows > 4 {
                keep.iter().flat_map(|&k| of_class(4, k)).collect()
            } else if a.name().contains(".conv_logits.") {
                keep.to_vec()
            } else if a.name().contains(".retina_cls.") {
                (0..9).flat_map(|anchor| keep.map(|k| anchor * CLASSES + k)).collect()
            } else {
                (0..rows).collect()
            };
            let want: Vec<f32> = picked.iter().flat_map(|&r| x[r * width..][..width].to_vec()).collect();
            assert!(y == want, "{detector:?}: {}", a.name());
        }
        let origin = Origin { format: Some(format), keep: Some(Keep { classes: &keep, of: 4 }) };
        let e = load(&path, &cfg, &other, origin).unwrap_err().to_string();
        assert!(e.contains("it has 5 classes, and 4 are named"), "{e}");
    }
}

#[test]
fn obstacles() {
    type Change = fn(&mut ModelConfig);
    let cases: &[(Detector, &str, Change)] = &[
        (Detector::CascadeRcnn, "model.detector", |_| {}),
        (Detector::FasterRcnn, "model.backbone.kind", |c| c.backbone.kind = BackboneKind::SwinS),
        (Detector::MaskRcnn, "model.box_head.kind", |c| c.box_head.kind = BoxHeadKind::Shared4Conv1Fc),
        (Detector::FasterRcnn, "model.box_head.class_agnostic", |c| c.box_head.class_agnostic = true),
        (Detector::FasterRcnn, "model.fpn.start", |c| c.fpn.start = 3),
        (Detector::FasterRcnn, "model.fpn.levels", |c| c.fpn.levels = 4),
        (Detector::FasterRcnn, "model.fpn.extra", |c| c.fpn.extra = FpnExtra::ConvP5),
        (Detector::RetinaNet, "model.fpn.extra", |c| c.fpn.extra = FpnExtra::Subsample),
        (Detector::RetinaNet, "model.fpn.extra_relu", |c| c.fpn.extra_relu = false),
        (Detector::FasterRcnn, "model.rpn.channels", |c| c.rpn.channels = 16),
        (Detector::RetinaNet, "model.retina_head.convs", |c| c.retina_head.convs = 3),
        (Detector::RetinaNet, "model.retina_head.channels", |c| c.retina_head.channels = 16),
        (Detector::MaskRcnn, "model.mask_head.convs", |c| c.mask_head.convs = 0),
    ];
    for (detector, key, change) in cases {
        let mut cfg = small(*detector, BackboneKind::Resnet18);
        export(Path::new("c.safetensors"), Format::Mmdetection, &cfg, []).unwrap();
        change(&mut cfg);
        let e = export(Path::new("c.safetensors"), Format::Torchvision, &cfg, []).map(|_| ()).unwrap_err().to_string();
        assert!(e.starts_with("c.safetensors: ") && e.contains(&format!("{key}: ")), "{key}: {e}");
        export(Path::new("c.safetensors"), Format::Mmdetection, &cfg, []).unwrap();
    }
}
