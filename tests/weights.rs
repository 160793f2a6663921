//! Weights of torchvision and mmdetection: names and shapes are theirs, what goes out comes back bit for bit, and files that are
//! not what they should be are refused with nothing changed.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::fixtures::{WeightRules, hash_tensor};
use upres::device::Device;
use upres::models::config::{BackboneKind, BoxHeadKind, Detector, FpnExtra, ModelConfig};
use upres::models::{Model, PixelStats};
use upres::nn::ParamStore;
use upres::recipe::Recipe;
use upres::weights::{
    ForeignData, ForeignTensor, Format, Keep, Loaded, Named, Origin, Translator, export, is_foreign, load, write,
};

const CLASSES: usize = 5;

/// The smallest detector of its kind that both programs can have.
fn small(detector: Detector, kind: BackboneKind) -> ModelConfig {
    let mut cfg = ModelConfig::paper(detector);
    (cfg.backbone.kind, cfg.backbone.width) = (kind, 0.125);
    (cfg.fpn.channels, cfg.rpn.channels, cfg.retina_head.channels, cfg.mask_head.channels) = (8, 8, 8, 8);
    (cfg.box_head.kind, cfg.box_head.fc_channels, cfg.box_head.pool) = (BoxHeadKind::Shared2Fc, 16, 3);
    cfg.fpn.extra_relu = detector == Detector::RetinaNet;
    cfg
}

fn model(device: &Device, cfg: &ModelConfig, classes: usize) -> ParamStore {
    let mut store = ParamStore::new(device);
    let pixels = PixelStats { mean: [0.0; 3], std: [1.0; 3] };
    Model::new(&mut store.builder(1), cfg, classes, pixels).unwrap();
    store
}

/// A model whose elements all differ.
fn filled(cfg: &ModelConfig, classes: usize) -> ParamStore {
    let store = model(&Device::cpu(), cfg, classes);
    store.all().iter().for_each(|p| p.load(&hash_tensor(p.name(), p.numel(), 1.0, 0.0)).unwrap());
    store
}

fn bits(store: &ParamStore) -> BTreeMap<String, Vec<u32>> {
    let of = |p: &upres::tape::Param| p.value().f32s().iter().map(|v| v.to_bits()).collect();
    store.all().iter().map(|p| (p.name().to_string(), of(p))).collect()
}

fn tensors(format: Format, cfg: &ModelConfig, store: &ParamStore) -> Vec<ForeignTensor> {
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

/// A file read into a fresh model.
fn read(path: &Path, cfg: &ModelConfig, classes: usize) -> (upres::Result<Loaded>, ParamStore) {
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

/// As lists of "name shape".
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

/// Settings with which a detector is torchvision's.
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

/// A backbone fills the backbone; what classifiers have behind it is of no use, and all else is as it was.
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

/// The paper's repository, and the classifiers of Swin's authors: other names, other order where tokens merge.
#[test]
fn swin_of_its_authors() {
    let dir = tempfile::tempdir().unwrap();
    let cfg = small(Detector::MaskRcnn, BackboneKind::SwinT);
    let store = filled(&cfg, CLASSES);
    let renamed: Vec<ForeignTensor> = tensors(Format::Mmdetection, &cfg, &store)
        .into_iter()
        .map(|mut t| {
            if let (ForeignData::F32(x), true) = (&mut t.data, t.name.contains(".downsample.")) {
                // mmdetection's channel c·4 + kh·2 + kw is theirs (kw·2 + kh)·C + c.
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

/// Predictors of another number of classes stay as they are; all else is read.
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
        // Mask R-CNN: classes, deltas, masks. Cascade R-CNN: classes three times; deltas that all classes share are read.
        let want = if detector == Detector::RetinaNet { 2 } else { 6 };
        assert_eq!(anew.len(), want, "{anew:?}");
    }
}

/// Some of a file's classes: the rows of the others are left out.
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

/// A safetensors file of any entries, right or wrong.
fn raw(header: &Value, data: &[u8]) -> Vec<u8> {
    let text = header.to_string();
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), data].concat()
}

#[test]
fn half_types_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let cfg = small(Detector::FasterRcnn, BackboneKind::Resnet18);
    let store = filled(&cfg, CLASSES);
    for (dtype, round) in [
        ("F16", (|v| half::f16::from_f32(v).to_bits()) as fn(f32) -> u16),
        ("BF16", |v| half::bf16::from_f32(v).to_bits()),
    ] {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for t in tensors(Format::Torchvision, &cfg, &store) {
            let ForeignData::F32(x) = t.data else { continue };
            let start = data.len();
            data.extend(x.iter().flat_map(|v| round(*v).to_le_bytes()));
            header.insert(t.name, json!({ "dtype": dtype, "shape": t.shape, "data_offsets": [start, data.len()] }));
        }
        let path = dir.path().join("w.safetensors");
        fs::write(&path, raw(&header.into(), &data)).unwrap();
        let (loaded, other) = read(&path, &cfg, CLASSES);
        loaded.unwrap();
        for (a, b) in store.all().iter().zip(other.all()) {
            let back = |v: f32| match dtype {
                "F16" => half::f16::from_f32(v).to_f32(),
                _ => half::bf16::from_f32(v).to_f32(),
            };
            assert!(a.value().f32s().iter().zip(b.value().f32s()).all(|(x, y)| back(*x) == *y), "{}", a.name());
        }
    }
}

#[test]
fn files_that_are_refused_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let cfg = small(Detector::FasterRcnn, BackboneKind::Resnet18);
    let store = model(&Device::cpu(), &cfg, CLASSES);
    let before = bits(&store);
    let refused = |bytes: &[u8], parts: &[&str]| {
        fs::write(&path, bytes).unwrap();
        let e = load(&path, &cfg, &store, Origin::default()).map(|_| ()).unwrap_err().to_string();
        assert!(!e.contains('\n') && e.starts_with(&path.display().to_string()), "{e}");
        parts.iter().for_each(|p| assert!(e.contains(p), "want {p:?} in: {e}"));
        assert!(bits(&store) == before, "changed: {e}");
    };
    let good = |format, cfg: &ModelConfig| {
        let mut bytes = Vec::new();
        write(&mut bytes, &tensors(format, cfg, &filled(cfg, CLASSES)), &[]).unwrap();
        bytes
    };
    let whole = good(Format::Torchvision, &cfg);
    for n in [0, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..n], &["not a whole safetensors file"]);
    }
    refused(&[whole.as_slice(), b"x"].concat(), &["not a whole safetensors file"]);
    // Headers that lie: their length, offsets behind the end, over each other, of another size than the shape says.
    refused(&[&u64::MAX.to_le_bytes(), &whole[8..]].concat(), &["not a whole"]);
    refused(&[&9u64.to_le_bytes(), &whole[8..]].concat(), &["not a whole"]);
    let entry = |offsets: [usize; 2]| json!({ "dtype": "F32", "shape": [2], "data_offsets": offsets });
    refused(&raw(&json!({ "conv1.weight": entry([0, 16]) }), &[0; 8]), &["not a whole"]);
    refused(&raw(&json!({ "conv1.weight": entry([8, 0]) }), &[0; 8]), &["not a whole"]);
    refused(&raw(&json!({ "a": entry([0, 8]), "b": entry([4, 12]) }), &[0; 12]), &["not a whole"]);
    let many = json!({ "dtype": "F32", "shape": [u64::MAX, 3], "data_offsets": [0, 8] });
    refused(&raw(&json!({ "conv1.weight": many }), &[0; 8]), &["not a whole"]);
    refused(b"PK\x03\x04 and so on", &["PyTorch", "pth_to_safetensors.py"]);
    refused(b"\x80\x02}q\x00(X\x05\x00\x00\x00", &["PyTorch", "pth_to_safetensors.py"]);
    refused(&raw(&json!({}), &[]), &["no upres metadata", "no tensors at all"]);
    refused(&raw(&json!({ "encoder.weight": entry([0, 8]) }), &[0; 8]), &["encoder.weight", "interchange.md"]);

    // Other models: the first tensors with both shapes, and where the difference is.
    let with = |change: fn(&mut ModelConfig)| {
        let mut other = cfg.clone();
        change(&mut other);
        good(Format::Mmdetection, &other)
    };
    refused(
        &with(|c| c.backbone.kind = BackboneKind::Resnet34),
        &["another backbone", "layer1.2.bn1.bias is not in the model", "more"],
    );
    refused(
        &with(|c| c.backbone.kind = BackboneKind::SwinT),
        &["another backbone", "backbone.conv1.weight is missing"],
    );
    refused(
        &with(|c| c.backbone.width = 0.25),
        &["another backbone", "backbone.conv1.weight is [16, 3, 7, 7], the model wants [8, 3, 7, 7]"],
    );
    refused(&with(|c| c.fpn.channels = 16), &["another pyramid", "neck.lateral_convs.0.conv.weight is [16, 8, 1, 1]"]);
    refused(&with(|c| c.rpn.anchor_scales = vec![4.0, 8.0]), &["region proposal", "rpn_cls.weight is [6, 8, 1, 1]"]);
    refused(
        &with(|c| c.box_head.kind = BoxHeadKind::Shared4Conv1Fc),
        &["another box head", "shared_fcs.0.weight is [16, 2304], the model wants [16, 72]"],
    );
    refused(
        &with(|c| c.box_head.class_agnostic = true),
        &["another box head", "fc_reg.weight is [4, 16], the model wants [20, 16]"],
    );
    refused(&with(|c| c.detector = Detector::MaskRcnn), &["mask_rcnn", "model.detector is faster_rcnn"]);
    refused(
        &with(|c| *c = small(Detector::RetinaNet, BackboneKind::Resnet18)),
        &["retinanet", "model.detector is faster_rcnn"],
    );

    // One tensor of another type, one that is not finite.
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let at = text(&whole).find("\"F32\"").unwrap();
    let mut typed = whole.clone();
    typed[at..at + 5].copy_from_slice(b"\"I32\"");
    refused(&typed, &["is I32", "f32, f16 or bf16"]);
    let mut spoilt = whole.clone();
    let n = spoilt.len();
    spoilt[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&spoilt, &["NaN", "spoilt"]);

    fs::write(&path, &whole).unwrap();
    let origin = Origin { format: Some(Format::Mmdetection), keep: None };
    let e = load(&path, &cfg, &store, origin).unwrap_err().to_string();
    assert!(e.contains("those of torchvision, not of mmdetection"), "{e}");
    let four = ModelConfig { box_head: ModelConfig::default().box_head, ..cfg.clone() };
    let e = load(&path, &four, &model(&Device::cpu(), &four, CLASSES), Origin::default()).unwrap_err().to_string();
    assert!(e.contains("model.box_head.kind"), "{e}");
    assert!(load(&dir.path().join("none"), &cfg, &store, Origin::default()).is_err());
    load(&path, &cfg, &store, Origin::default()).unwrap();
}
